"""Object stores: a product published to one and read from there, and checkpoints kept in one.

<prefix>/current.json                    which version is current, with sizes and digests of its files
<prefix>/versions/<version>/drivers.gpkg ...  the files of a product; a version is never written twice
<prefix>/checkpoints/<name>/...          a finished block; `commit.json`, written last, says that it is whole

A store cannot rename. So files go to a new place, are read back and compared, and `current.json`, one small object, is
replaced last: whoever reads it finds the earlier product or the new one.
"""
