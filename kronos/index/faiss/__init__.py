"""Everything that Kronos does with FAISS on the CPU. No other folder of Kronos imports faiss.

All input is checked before FAISS sees it: FAISS accepts NaN and keys that it holds already, and
reads past the end of an array of another width under `python -O`. FAISS never reads a file here.
"""
