"""What stands in a Markdown table."""


def cells(text: str) -> list[list[str]]:
    """The rows of a Markdown table, without its header."""
    return [[cell.strip() for cell in row[2:-2].split(" | ")] for row in text.splitlines()[2:]]
