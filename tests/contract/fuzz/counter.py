"""How many cases of each kind the fuzz tests really ran."""

from collections import Counter

ran: Counter = Counter()
