"""The one exception for what a user can fix."""


class UsageError(ValueError):
    """A user's mistake: one line that names the key, its value and the remedy.

    The command line prints the message alone and exits with 2; anything else that is raised
    is a defect of ours and keeps its traceback.
    """
