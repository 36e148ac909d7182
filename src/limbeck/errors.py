"""The errors that a user can cause, and what the command line does with them."""


class InputError(Exception):
    """The input is wrong: exit code 2, one line on standard error, nothing written.

    The message reads "where: what was found; what is allowed", on one line.
    """

    def __init__(self, where: str, found: str, allowed: str = "") -> None:
        self.where, self.found, self.allowed = where, found, allowed
        message = f"{where}: {found}" + (f"; {allowed}" if allowed else "")
        super().__init__(" ".join(message.split()))


class WorkError(Exception):
    """The work itself failed (a full disk, a diverged training): exit code 1, one line on standard error."""
