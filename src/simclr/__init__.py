"""SimCLR and SimCLRv2: parts that work alone, and a program over them."""
