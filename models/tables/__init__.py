"""The samples, in four tables by the kind of recurrence; `models.registry` joins them."""
