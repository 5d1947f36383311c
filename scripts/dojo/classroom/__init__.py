"""A class: what is handed out to it, and how what comes back is graded."""
