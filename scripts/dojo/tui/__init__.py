"""The full-screen interface of a practice session, which `kata practice` alone imports."""
