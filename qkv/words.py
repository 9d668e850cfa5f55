"""Words for people: the nearest of what is known."""

import difflib


def nearest(word, words):
    """' Did you mean X?' for the closest of `words`, or ''."""
    close = difflib.get_close_matches(str(word), list(words), 1, 0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
