"""Values <-> bytes of one sample: the quantizer (`quantize`) and the transform `pixel` (`pixel`)."""
