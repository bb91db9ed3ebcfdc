"""What a run costs: predicted from its plan and from what earlier runs took here, and held against the run.

A plan gives work (megapixels to read, to classify, to merge, to write), a table the seconds of a core for each unit of
it, and the last runs of this machine a factor for each stage: its seconds for a second of the table.
"""
