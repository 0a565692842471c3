// sigmoid and tanh as exact as bfloat16 needs them, for half the time of math.h's: relative errors below
// 9e-5, a twentieth of half a unit in bfloat16's last place. By tables, of which AVX-512 holds 32 entries in
// two registers. Neither passes its bounds, or a state would grow where a gate is shut; a NaN stays one.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// tanh(x) = x * g(|x|), g a quadratic on each of 32 stretches of a quarter: least relative errors.
alignas(64) constexpr float kTanhTerms[3][32] = {
    {1.00003183f,  1.00607038f,  1.03603709f,  1.0919416f,   1.15228307f,  1.19328761f,
     1.20404851f,  1.18601596f,  1.14668596f,  1.09435487f,  1.03582323f,  0.975845873f,
     0.917393923f, 0.862127006f, 0.810829043f, 0.763739228f, 0.720780313f, 0.681706488f,
     0.646195054f, 0.613900185f, 0.584483445f, 0.557629228f, 0.53305155f,  0.510495543f,
     0.489736617f, 0.470578074f, 0.452848077f, 0.436396688f, 0.421092868f, 0.406822622f,
     0.393485695f, 0.380994171f},
    {-0.00189264142f, -0.0467507578f, -0.16569154f,   -0.315579355f,  -0.437515289f,
     -0.504111648f,   -0.519048393f,  -0.498721957f,  -0.459497124f,  -0.412995785f,
     -0.366146892f,   -0.322490811f,  -0.283486038f,  -0.249442905f,  -0.220102385f,
     -0.194965586f,   -0.173468396f,  -0.155066669f,  -0.139272675f,  -0.125666022f,
     -0.113892332f,   -0.103656568f,  -0.0947147235f, -0.0868655145f, -0.0799429119f,
     -0.0738097429f,  -0.0683523491f, -0.0634762049f, -0.0591023266f, -0.055164557f,
     -0.0516070686f,  -0.0483826064f},
    {-0.318644375f,  -0.234126434f,  -0.11551214f,   -0.0148186535f, 0.0468555801f,  0.0739126354f,
     0.0790910423f,  0.073361747f,   0.0635787323f,  0.0532458387f,  0.0438694097f,  0.0359239988f,
     0.0294161327f,  0.0241730418f,  0.0199771784f,  0.0166223329f,  0.0139327487f,  0.0117660314f,
     0.0100097954f,  0.00857650582f, 0.00739837438f, 0.00642296067f, 0.00560962129f, 0.0049267374f,
     0.00434958609f, 0.00385872205f, 0.0034387554f,  0.00307742576f, 0.00276489905f, 0.0024932418f,
     0.00225600484f, 0.00204791641f}};

// 2^(j / 16), less j sixteenths of a step of the exponent: adding k << 19 to entry k % 16 gives
// 2^(k / 16).
alignas(64) constexpr std::uint32_t kSixteenths[16] = {
    0x3f800000u, 0x3f7daac3u, 0x3f7b95c2u, 0x3f79c3d3u, 0x3f7837f0u, 0x3f76f532u,
    0x3f75fed7u, 0x3f75583fu, 0x3f7504f3u, 0x3f7508a4u, 0x3f75672au, 0x3f76248cu,
    0x3f7744fdu, 0x3f78ccdfu, 0x3f7ac0c7u, 0x3f7d257du};

struct TableMath {
  using V = Vec<float>;
  using R = FUSED_RNN_TABLES;

  FUSED_RNN_INLINE static V tanh(V x) {
    const V clamped = R::clamp(x, 7.9999995f);
    const V a = same_bits<V>(same_bits<FloatBits>(clamped) & 0x7fffffffu);
    const FloatBits k = R::template truncated<FloatBits>(a * 4.0f);
    V g = R::template entry<V>(kTanhTerms[2], k);
    g = g * a + R::template entry<V>(kTanhTerms[1], k);
    g = g * a + R::template entry<V>(kTanhTerms[0], k);
    return clamped * g;
  }

  // 1 / (1 + exp(-x)), exp(-x) = 2^(k / 16) * (1 - r + r^2 / 2), |r| < 0.022.
  FUSED_RNN_INLINE static V sigmoid(V x) {
    constexpr float kRound = 12582912.0f;  // as in math.h
    const V clamped = R::clamp(x, 87.0f), shifted = clamped * -23.0831207f + kRound;
    const V r = clamped + (shifted - kRound) * 0.0433216988f;
    const FloatBits k = same_bits<FloatBits>(shifted);
    const V scale = same_bits<V>(R::sixteenth(kSixteenths, k) + (k << 19));
    const V fraction = (r * 0.5f - 1.0f) * r + 1.0f;
    return R::reciprocal(scale * fraction + 1.0f);
  }
};

template <class S>
using GateMath = std::conditional_t<std::is_same<S, BFloat16>::value, TableMath, ExactMath>;

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn
