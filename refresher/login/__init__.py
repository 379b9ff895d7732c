"""Login: from an address to a grant that renews itself."""

from refresher.login.asked import Asked
from refresher.login.course import Done, Manner, log_in

__all__ = ["Asked", "Done", "Manner", "log_in"]
