"""Which column of a table plays which role, and the pairs that its rows state.

recognise   the schema of a table: a known one (table), or by usual names (names, guess, sample)
codings     what the values of a label mean; agree: that two columns do not contradict each other
refuse      what would be lost or is unclear, with the mapping to type (mapping, nearest)
schema      the roles of a dataset's columns
parse       a row to pairs (preference: which side is better; labels: which side a word names)
reverse     a row with its preference reversed
compose     texts, messages and transcripts to a prompt and two responses (cells finds them)
"""
