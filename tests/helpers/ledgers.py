"""Made-up entries of a ledger."""

from djax import keys
from djax.owner.ledger import Entry

MASTER = keys.Master(bytes(range(3, 35)))


def entered(ledger, *numbers):
  """Enters made-up data sets."""
  for number in numbers:
    planned = Entry(
      "", MASTER.fingerprint, f"{number:032x}", "", "npz", ("00",), {"a": {"b": 1}}, ""
    )
    facts = type("Facts", (), {"sha256": f"{number:064x}"})()
    ledger.enter(planned, facts)
