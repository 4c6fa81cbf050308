"""A step of several ranks: the encoder on a part of each batch, the item table in parts of its
rows.

``division`` gives each rank its part of the batch that one rank would have had, ``objective``
fetches the rows of the table and has the loss, ``shards`` writes and reads what ranks have.
"""
