"""Schemas of preference datasets: which column plays which role, and what a row states.

`schema` turns a row into pairs, `table` lists the known datasets, `recognise` chooses one for a
table or refuses it with the mapping to type.
"""
