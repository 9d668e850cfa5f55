"""Words for people: the nearest of what is known, and how far things are."""

import difflib


def nearest(word, words):
    """' Did you mean X?' for the closest of `words`, or ''."""
    close = difflib.get_close_matches(str(word), list(words), 1, 0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def track(things, about):
    """A progress bar on standard error, gone when it is done."""
    from rich.console import Console
    from rich.progress import track as bar

    return bar(things, about, transient=True, console=Console(stderr=True))
