"""What stops a comparison: a person's mistake, or a run that went wrong."""


class Refused(Exception):  # noqa: N818  an outcome, not a defect
    """The setting or the input cannot give a verdict; nothing was judged. Exit code 2."""


class RunFailed(Exception):  # noqa: N818  the same
    """A server or a request failed. No wrong answer is counted for it. Exit code 4."""
