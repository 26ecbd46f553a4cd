"""Named to be read aloud: `raise Refused("...")`. Their texts are for the user."""


class Refused(Exception):  # noqa: N818
    """What was asked cannot be done safely; nothing was written."""


class WrongUsage(Exception):  # noqa: N818
    """The command line does not say anything that could be done."""
