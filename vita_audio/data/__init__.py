"""From JSON samples and sound files to packed rows of token ids: see the README in this folder."""
