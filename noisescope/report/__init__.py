"""What people look at: figures, one self-contained HTML page, and the same in the terminal."""
