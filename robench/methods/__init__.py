"""Methods: where they come from, what they say of themselves, and the contract they are held to."""
