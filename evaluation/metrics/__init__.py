"""Error rates, right answers and measures of speech, with intervals and paired tests."""
