"""Speech corpora from recordings or texts: readers of common layouts, measuring, filtering, splitting, a report."""
