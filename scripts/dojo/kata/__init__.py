"""What a kata is: its folder, its catalogue of bugs, and how these are planted."""
