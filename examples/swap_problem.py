"""A problem: swap two facts, so that each has the other's object.

loc-edit run --plugin examples/swap_problem.py --problems error_injection swap

Unlike the false object of error injection, the new object is true of another subject in the data set.
"""

import loc_edit


@loc_edit.problem("swap", label="Swap")
def swap(fact, facts):
    """Make the model say the object of the next fact of the relation."""
    same = [other for other in facts if other.relation == fact.relation]
    at = next(i for i, other in enumerate(same) if other.fact_id == fact.fact_id)
    partner = next((other for other in same[at + 1 :] + same[:at] if other.target_true != fact.target_true), None)
    if partner is None:
        raise loc_edit.NotEligible(
            f"fact {fact.fact_id}: all facts of its relation have the object {fact.target_true!r}"
        )
    return partner.target_true
