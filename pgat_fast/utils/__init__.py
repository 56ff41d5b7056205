"""What every part uses: files, tables of text, the machine."""
