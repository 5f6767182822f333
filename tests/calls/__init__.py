"""Calls of every public function with anything as arguments: an error of ours, or an answer.

``things`` makes arguments, ``table`` says what a right call is; one line there for each public
name. Arguments that have a default need no mention.
"""

from tests.calls.attack import any_call, obscure, outcome
from tests.calls.call import Call
from tests.calls.table import CALLS

__all__ = ["CALLS", "Call", "any_call", "obscure", "outcome"]
