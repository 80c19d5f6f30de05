"""``kvpersist ui``: pages to browse the histories of a store.

Pages are made on the server and work without a script.  Ids stand in addresses as the segments of keys, in an
alphabet that means nothing to a URL (see `kvpersist.keys`).
"""
