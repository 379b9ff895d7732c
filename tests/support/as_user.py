"""Runs ``refresher`` as another user: ``python -m tests.support.as_user USER GROUP MORE_GROUPS ARGUMENT...``.

It needs root, and a warm start (``tests/support/warm.py``): that user may not be able to read the checkout.
"""

import codecs
import grp
import os
import pwd
import sys

from refresher.__main__ import main

__all__ = ["become"]


# What refresher loads later, when this user cannot read it any more.
_ENCODINGS = [codecs.lookup(name) for name in ("ascii", "idna", "latin-1", "utf-8")]
_DATABASES = (grp, pwd)


def become(user: int, group: int, *more: int) -> None:
    """Give this process the rights of a user, who is in ``group`` and in ``more`` groups."""
    os.setgroups(more)
    os.setgid(group)
    os.setuid(user)


if __name__ == "__main__":
    user, group, more = sys.argv[1:4]
    become(int(user), int(group), *map(int, more.split(",")))
    sys.argv = ["refresher", *sys.argv[4:]]
    main()
