"""What the user did wrong, as opposed to what robench did wrong."""


class InputError(ValueError):
    """The user's mistake: told in one line with its fix, exit code 2, never a traceback."""


class Failure(RuntimeError):
    """A method could not do its work here, by no fault of the program: the cell is a hole.

    A loss that became NaN, a training text that is missing, a model too large for the memory.
    """
