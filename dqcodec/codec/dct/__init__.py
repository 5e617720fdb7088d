"""The transform `dct`: a block transform with dependent quantisation and static-context entropy coding."""
