// The products of rows of float32 with a weight that is stored in fewer bits: as integers, or widened.
// Rows of the weight are read as they lie, one after the other: at a few sequences, for which this is,
// each of them is read once.
#pragma once

namespace fused_rnn {
namespace FUSED_RNN_LEVEL {

// A weight's rows [first, first + count) that give a vector of pre-activations, `end` of the weight,
// and their scales.
template <class W>
struct WeightRows {
  const W* first;
  std::int64_t count, columns;
  const W* end;
  const float* scales;
};

constexpr std::int64_t kAheadRows = 16;

// The products of a step: of as many prepared rows, at `r`, and rows of the weight as there are sums.
template <class D, bool kAhead, int kHeight, int kRows>
FUSED_RNN_INLINE void add_products(const typename D::Element* r, std::int64_t r_row, std::int64_t k,
                                   const typename D::Stored* const* w, std::int64_t columns,
                                   typename D::Sum (&sums)[kHeight][kRows]) {
  constexpr std::int64_t kLine = 64 / sizeof(typename D::Stored);
  if (kAhead && k % kLine == 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      __builtin_prefetch(w[i] + k + kAheadRows * columns);
    }
  }
  typename D::Row row[kHeight];
#pragma GCC unroll 4
  for (int m = 0; m < kHeight; ++m) {
    row[m] = D::row(r + m * r_row + k);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    const typename D::Weight weight = D::weight(w[i] + k);
#pragma GCC unroll 4
    for (int m = 0; m < kHeight; ++m) {
      D::add(sums[m][i], weight, row[m]);
    }
  }
}

// kHeight prepared rows times kLanes rows of the weight, as many at a time as there are registers
// for; out[m] is row m's sums.
//
// kAhead: what comes from memory is asked for kAheadRows rows before it is read. Rows of bytes are short:
// each is over soon after the CPU has seen that it is read in order.
template <class D, int kHeight, bool kAhead = false>
void sum_products(const typename D::Element* r, std::int64_t r_row,
                  const WeightRows<typename D::Stored>& w, typename D::Sum* out) {
  constexpr int kW = static_cast<int>(kLanes<float>);
  constexpr int kAtOnce = std::min(kW, FUSED_RNN_VECTOR_REGISTERS / 2 / kHeight);
  typename D::Sum sums[kHeight][kW];
  for (int first = 0; first < kW; first += kAtOnce) {
    typename D::Sum some[kHeight][kAtOnce] = {};
    const typename D::Stored* rows[kAtOnce];
    for (int i = 0; i < kAtOnce; ++i) {
      // Rows past the last repeat it: their lanes belong to no hidden unit.
      rows[i] = w.first + std::min<std::int64_t>(first + i, w.count - 1) * w.columns;
    }
    std::int64_t k = 0;
    for (; k + D::kStep <= w.columns; k += D::kStep) {
      add_products<D, kAhead>(r, r_row, k, rows, w.columns, some);
    }
    if (k < w.columns) {
      // Past its end stands the next row, which meets zeros: that makes zero of any integer, not of a NaN.
      // Past the last one there may be nothing.
      typename D::Stored copies[kAtOnce][D::kStep] = {};
      const typename D::Stored* from[kAtOnce];
      for (int i = 0; i < kAtOnce; ++i) {
        from[i] = rows[i];
        if (!D::kExact || w.end - (rows[i] + k) < D::kStep) {
          std::memcpy(copies[i], rows[i] + k,
                      static_cast<std::size_t>(w.columns - k) * sizeof(typename D::Stored));
          from[i] = copies[i] - k;
        }
      }
      add_products<D, kAhead>(r, r_row, k, from, w.columns, some);
    }
    for (int m = 0; m < kHeight; ++m) {
      for (int i = 0; i < kAtOnce; ++i) {
        sums[m][first + i] = some[m][i];
      }
    }
  }
  for (int m = 0; m < kHeight; ++m) {
    out[m] = sum_lanes<typename D::Lane>(sums[m]);
  }
}

template <class D>
void sum_rows(int height, bool far, const typename D::Element* first, std::int64_t stride,
              const WeightRows<typename D::Stored>& w, typename D::Sum* sums) {
  if (height == 4) {
    sum_products<D, 4>(first, stride, w, sums);
  } else if (height == 2) {
    sum_products<D, 2>(first, stride, w, sums);
  } else if (far) {
    sum_products<D, 1, true>(first, stride, w, sums);
  } else {
    sum_products<D, 1>(first, stride, w, sums);
  }
}

// What a row was divided by, and the sum of its integers.
struct RowScale {
  float scale;
  std::int32_t sum;
};

// The integers of a row of `columns` elements, with zeros up to a whole step: see quantize_rows in
// fused_rnn/backends/quantized.py.
template <class D>
RowScale quantize_row(const float* x, std::int64_t columns, typename D::Element* out) {
  using V = Vec<float>;
  using Integers = Vec<std::int32_t>;
  typedef typename D::Element Narrow
      __attribute__((vector_size(kLanes<float> * sizeof(typename D::Element))));
  constexpr std::int64_t kW = kLanes<float>;
  // 1.5 * 2^23: what is added to it is rounded to an integer, half to even, in its lowest bits.
  constexpr float kRound = 12582912.0f, kLargest = 127.0f;
  V largest{}, zero{};
  const auto valid = [&](std::int64_t k) { return std::min(kW, columns - k); };
  for (std::int64_t k = 0; k < columns; k += kW) {
    const V v = load(x + k, valid(k));
    const V magnitude = same_bits<V>(same_bits<FloatBits>(v) & 0x7fffffffu);
    largest = magnitude > largest ? magnitude : largest;
    zero += v * 0.0f;  // NaN, once an element is that or infinite
  }
  float most = 0, none = 0;
  for (std::int64_t i = 0; i < kW; ++i) {
    most = largest[i] > most ? largest[i] : most;
    none += zero[i];
  }
  const bool finite = none == 0;
  const float scale = std::max(most / kLargest, std::numeric_limits<float>::min());
  Integers sum{};
  for (std::int64_t k = 0; k < columns; k += kW) {
    const V shifted = load(x + k, valid(k)) / scale + kRound;
    Integers q = same_bits<Integers>(shifted) - 0x4b400000;
    q = finite ? q : Integers{};
    sum += q;
    const Narrow narrow = __builtin_convertvector(q, Narrow);
    std::memcpy(out + k, &narrow, sizeof(narrow));
  }
  const std::int64_t written = ceil_div(columns, kW) * kW,
                     padded = ceil_div(columns, D::kStep) * D::kStep;
  std::fill(out + written, out + std::max(written, padded), typename D::Element{});
  std::int32_t total = 0;
  for (std::int64_t i = 0; i < kW; ++i) {
    total += sum[i];
  }
  return {finite ? scale : std::numeric_limits<float>::quiet_NaN(), total};
}

// Rows of integers, as they are multiplied with an int8 weight.
template <class D>
class IntegerRows {
 public:
  using Weight = std::int8_t;
  using V = Vec<float>;

  IntegerRows() = default;
  // `far`: whether the weights are more than caches hold.
  IntegerRows(std::int64_t rows, std::int64_t columns, bool far)
      : far_(far),
        columns_(columns),
        stride_(ceil_div(columns, D::kStep) * D::kStep),
        integers_(rows * stride_),
        scales_(rows) {}

  void prepare(std::int64_t n, const float* row) {
    scales_.get()[n] = quantize_row<D>(row, columns_, integers_.get() + n * stride_);
  }

  // f(row, its products) for rows [begin, end), which stand one after the other at `rows`.
  template <class F>
  FUSED_RNN_INLINE void multiply(std::int64_t begin, std::int64_t end, const WeightRows<Weight>& w,
                                 F&& f) const {
    const V scales = load(w.scales, w.count);
    for (std::int64_t n = begin; n < end;) {
      const int height = end - n >= 4 ? 4 : end - n >= 2 ? 2 : 1;
      Sums sums[4];
      sum_rows<D>(height, far_, integers_.get() + n * stride_, stride_, w, sums);
      for (int m = 0; m < height; ++m) {
        const RowScale of = scales_.get()[n + m];
        sums[m] -= static_cast<std::uint32_t>(D::kOffset * of.sum);
        const auto exact = same_bits<Vec<std::int32_t>>(sums[m]);
        f(n + m, __builtin_convertvector(exact, V) * (scales * of.scale));
      }
      n += height;
    }
  }

 private:
  bool far_ = false;
  std::int64_t columns_ = 0, stride_ = 0;
  Buffer<typename D::Element> integers_;  // (rows, stride)
  Buffer<RowScale> scales_;               // (rows,)
};

// Rows of float32, as they are multiplied with a bfloat16 weight: of each two vectors the elements at even
// places come first, as WideDot has those of the weight.
class FloatRows {
 public:
  using Weight = BFloat16;
  using V = Vec<float>;

  FloatRows() = default;
  FloatRows(std::int64_t rows, std::int64_t columns, bool far)
      : far_(far),
        columns_(columns),
        stride_(ceil_div(columns, WideDot::kStep) * WideDot::kStep),
        floats_(rows * stride_) {}

  void prepare(std::int64_t n, const float* row) {
    constexpr std::int64_t kW = kLanes<float>;
    float* const out = floats_.get() + n * stride_;
    std::fill(out + columns_ / WideDot::kStep * WideDot::kStep, out + stride_, 0.0f);
    for (std::int64_t k = 0; k < columns_; ++k) {
      const std::int64_t place = k % WideDot::kStep;
      out[k - place + place % 2 * kW + place / 2] = row[k];
    }
  }

  template <class F>
  FUSED_RNN_INLINE void multiply(std::int64_t begin, std::int64_t end, const WeightRows<Weight>& w,
                                 F&& f) const {
    for (std::int64_t n = begin; n < end;) {
      const int height = end - n >= 4 ? 4 : end - n >= 2 ? 2 : 1;
      V sums[4];
      sum_rows<WideDot>(height, far_, floats_.get() + n * stride_, stride_, w, sums);
      for (int m = 0; m < height; ++m) {
        f(n + m, sums[m]);
      }
      n += height;
    }
  }

 private:
  bool far_ = false;
  std::int64_t columns_ = 0, stride_ = 0;
  Buffer<float> floats_;  // (rows, stride)
};

}  // namespace FUSED_RNN_LEVEL
}  // namespace fused_rnn
