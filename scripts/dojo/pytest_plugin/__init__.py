"""What plain pytest loads to run a kata's tests."""
