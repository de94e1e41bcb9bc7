"""Pages of a shop and of its operators: rendered here, answered by the same calls as HTTP's."""

from raysys.web.answers import Answers
from raysys.web.storefront import storefront

__all__ = ["Answers", "storefront"]
