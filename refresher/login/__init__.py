"""Login: from an address to a grant that renews itself."""

from refresher.login.flow import Done, Manner, log_in
from refresher.login.options import Asked

__all__ = ["Asked", "Done", "Manner", "log_in"]
