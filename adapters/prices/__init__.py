"""Publishers of signed prices."""
