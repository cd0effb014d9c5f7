// What needs the generated module's own types: it comes after them.

static float kiln_widen(kiln_f16 x) {
  const unsigned sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
  const float magnitude = exponent == 0 ? std::ldexp((float)mantissa, -24)
                                        : std::ldexp((float)(mantissa | 1024), (int)exponent - 25);
  return sign ? -magnitude : magnitude;
}
static kiln_f16 kiln_narrow_f16(float x) {
  const unsigned short sign = __float_as_uint(x) >> 16 & 0x8000u;
  const float magnitude = std::fabs(x);
  if (x != x) return {(unsigned short)(sign | 0x7e00u)};
  if (magnitude == 0.0f) return {sign};
  if (magnitude >= 65520.0f) return {(unsigned short)(sign | 0x7c00u)};
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  exponent = exponent < -13 ? -13 : exponent;  // Below, the step stays 2^-24.
  const float steps = std::nearbyint(std::ldexp(magnitude, 11 - exponent));
  const int biased = exponent + 14;
  return {(unsigned short)(sign + (biased - 1) * 1024 + (int)steps)};
}
