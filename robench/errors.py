"""The two kinds of expected errors: mistakes of the user, and methods that could not run."""


class InputError(ValueError):
    """A mistake of the user: reported in one line with its fix, exit code 2, never a traceback."""


class Failure(RuntimeError):
    """A method could not do its work on this input, by no bug of the program.

    A loss that became NaN, a training text that is missing, a model too large for the memory. The
    cell is a hole in the tables.
    """
