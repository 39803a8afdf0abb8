"""Errors that a person can act on."""


class UserError(Exception):
    """Bad input or a missing prerequisite: the command prints it as one line and exits with 2."""


class KeptPrevious(Exception):  # noqa: N818 - an outcome, not a fault of the program
    """A check or deadline failed, so what was served before is still served: printed as one line, exit 3."""
