"""Tables, figures and the pages of a run, a data set and an export."""
