"""Pull requests to review: drawn, shown as a diff, judged and scored."""
