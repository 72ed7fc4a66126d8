"""How a question is answered: checked, embedded, looked up in one transaction, made hits."""
