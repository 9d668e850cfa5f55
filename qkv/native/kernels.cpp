// A program is a list of steps over rows of tokens; `run` executes it on a few threads. Every row is worked out in the same order of
// operations whatever rows stand beside it, so that a batch, a prefix or a guess verified later never changes a result.
//
// Weights are packed in panels: for every k (or few k), the weights of R outputs side by side.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// QKV_PLAIN leaves the processor's own instructions out, QKV_WIDTH and QKV_UNIT choose a layout: so one machine tests those of others.
#if defined(QKV_PLAIN)
#define HAS_VNNI512 0
#define HAS_VNNI 0
#define HAS_BW512 0
#define HAS_AVX2 0
#define HAS_AVX 0
#else
#if defined(__AVX512VNNI__)
#define HAS_VNNI512 1
#else
#define HAS_VNNI512 0
#endif
#if defined(__AVXVNNI__) && !defined(__AVX512F__)
#define HAS_VNNI 1
#else
#define HAS_VNNI 0
#endif
#if defined(__AVX512BW__)
#define HAS_BW512 1
#else
#define HAS_BW512 0
#endif
#if defined(__AVX2__) && !defined(__AVX512F__)
#define HAS_AVX2 1
#else
#define HAS_AVX2 0
#endif
#if defined(__AVX__)
#define HAS_AVX 1
#else
#define HAS_AVX 0
#endif
#endif
#if !defined(QKV_WIDTH)
#if defined(__AVX512F__)
#define QKV_WIDTH 16
#else
#define QKV_WIDTH 8
#endif
#endif
#if !defined(QKV_UNIT)
#if HAS_VNNI512 || HAS_VNNI
#define QKV_UNIT 4
#else
#define QKV_UNIT 2
#endif
#endif
constexpr int W = QKV_WIDTH;  // floats a vector
constexpr int R = 2 * W;        // outputs a panel
constexpr int GROUP4 = 32;      // weights and activations that share a scale, int4 weights
#if QKV_UNIT == 4
constexpr int UNIT = 4;         // int8: products of four bytes at once; activations are int8
constexpr int GROUP8 = 64;      // activations that share a scale
using act8 = int8_t;
constexpr float TOP8 = HAS_AVX2 && !HAS_VNNI ? 64.f : 127.f;  // AVX2 adds two products in 16 bits: 255 * 64 * 2 fits
#else
constexpr int UNIT = 2;         // int8: products of two 16-bit numbers; activations are int16
constexpr int GROUP8 = 256;
using act8 = int16_t;
constexpr float TOP8 = 32767.f;
#endif

// f(0), f(1) ... f(N - 1) with constant numbers: sums in arrays that are indexed so stay in registers.
#define INLINE __attribute__((always_inline))
template <class F, int... I>
INLINE inline void each_of(F f, std::integer_sequence<int, I...>) { (f(std::integral_constant<int, I>{}), ...); }
template <int N, class F>
INLINE inline void each(F f) { each_of(f, std::make_integer_sequence<int, N>{}); }

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef float memory_f __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef uint32_t memory_u __attribute__((vector_size(W * 4), aligned(2), may_alias));
typedef uint16_t memory_h __attribute__((vector_size(W * 2), aligned(2), may_alias));

inline vf all(float x) { return x - vf{}; }
inline vf load(const float* p) { return *(const memory_f*)p; }
inline void store(float* p, vf v) { *(memory_f*)p = v; }
inline vf load(const uint16_t* p) { return (vf)(__builtin_convertvector(*(const memory_h*)p, vu) << 16); }  // bfloat16
inline float one(const float* p) { return *p; }
inline float one(const uint16_t* p) { uint32_t u = uint32_t(*p) << 16; float f; memcpy(&f, &u, 4); return f; }
inline void put(float* p, float f) { *p = f; }
inline void put(uint16_t* p, float f) { uint32_t u; memcpy(&u, &f, 4); *p = (u + 0x7fff + ((u >> 16) & 1)) >> 16; }

inline void sum4(vf a, vf b, vf c, vf d, float* out) {  // the sums of four vectors
#if HAS_AVX
#if defined(__AVX512F__)
  auto half = [](vf v) { return _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1)); };
#else
  auto half = [](vf v) { return (__m256)v; };
#endif
  __m256 t = _mm256_hadd_ps(_mm256_hadd_ps(half(a), half(b)), _mm256_hadd_ps(half(c), half(d)));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
#else
  vf v[4] = {a, b, c, d};
  for (int j = 0; j < 4; j++) {
    for (int n = W / 2; n; n /= 2) for (int i = 0; i < n; i++) v[j][i] += v[j][i + n];
    out[j] = v[j][0];
  }
#endif
}
inline float sum(vf v) { float t[4]; sum4(v, v, v, v, t); return t[0]; }
inline float top(vf v) {
  float s[W], m; store(s, v); m = s[0];
  for (int i = 1; i < W; i++) m = s[i] > m ? s[i] : m;
  return m;
}
inline vf vmax(vf a, vf b) { return a > b ? a : b; }

inline vf vexp(vf x) {  // 2^n * a polynomial, within 2 units in the last place
  x = x > 88.f ? all(88.f) : x;
  x = x < -87.f ? all(-87.f) : x;
  vf n = x * 1.44269504f;
  vi i = __builtin_convertvector(n + (n < 0.f ? all(-0.5f) : all(0.5f)), vi);
  vf f = __builtin_convertvector(i, vf);
  vf r = x - f * 0.693359375f + f * 2.12194440e-4f;
  vf p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f; p = p * r + 8.3334519073e-3f; p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f; p = p * r + 5.0000001201e-1f; p = p * r * r + r + 1.f;
  return p * (vf)((i + 127) << 23);
}
inline vf vtanh(vf x) { vf e = vexp(-2.f * (x < 0.f ? -x : x)); vf t = (1.f - e) / (1.f + e); return x < 0.f ? -t : t; }
inline vf verf(vf x) {  // x P(x^2) / Q(x^2), fitted to 2e-8 of its value up to 3.9, where it is 1 in float32
  x = x > 3.9f ? all(3.9f) : x;
  x = x < -3.9f ? all(-3.9f) : x;
  vf u = x * x, p = all(2.066480358e-06f), q = all(3.827007184e-05f);
  p = p * u + 2.850617866e-04f; q = q * u + 1.157370303e-03f;
  p = p * u + 3.738320919e-03f; q = q * u + 1.491422742e-02f;
  p = p * u + 5.266800783e-02f; q = q * u + 1.138187116e-01f;
  p = p * u + 1.896662173e-01f; q = q * u + 5.014200906e-01f;
  p = p * u + 1.128379148f; q = q * u + 1.f;
  return x * p / q;
}
enum Act { NONE, GELU, GELU_NEW, RELU, SILU, QUICK_GELU, TANH };
inline vf activate(int act, vf x) {
  switch (act) {
    case GELU: return 0.5f * x * (1.f + verf(x * 0.70710678f));
    case GELU_NEW: return 0.5f * x * (1.f + vtanh(0.79788456f * (x + 0.044715f * x * x * x)));
    case RELU: return x > 0.f ? x : vf{};
    case SILU: return x / (1.f + vexp(-x));
    case QUICK_GELU: return x / (1.f + vexp(-1.702f * x));
    case TANH: return vtanh(x);
    default: return x;
  }
}
inline void activate(int act, const float* x, float* y, int n) {
  int i = 0;
  for (; i + W <= n; i += W) store(y + i, activate(act, load(x + i)));
  if (i < n) {  // the tail goes through the same arithmetic
    float t[W] = {};
    memcpy(t, x + i, (n - i) * 4);
    store(t, activate(act, load(t)));
    memcpy(y + i, t, (n - i) * 4);
  }
}

// ---- products of MR rows with P panels -------------------------------------------------------------------------------------

inline void pair(const float* p, vf& a, vf& b) { a = load(p); b = load(p + W); }
inline void pair(const uint16_t* p, vf& a, vf& b) {  // outputs i and W + i are the halves of one word
  vu u = *(const memory_u*)p;
  a = (vf)(u << 16); b = (vf)(u & 0xffff0000);
}

template <int MR, int P, class T>  // MR rows with P panels; T: float or bfloat16
inline void multiply(const float* x, int ldx, const T* w, int64_t panel, int K, vf (&acc)[MR][2 * P]) {
  vf t[MR][2 * P] = {};  // of its own: stores to the caller's array would go to memory every time
  for (int k = 0; k < K; k++, w += R) {
    vf b[2 * P];
    for (int p = 0; p < P; p++) {
      if (MR <= 4) __builtin_prefetch((const char*)(w + p * panel) + 4096);
      pair(w + p * panel, b[2 * p], b[2 * p + 1]);
    }
    for (int m = 0; m < MR; m++) {
      vf a = all(x[m * ldx + k]);
      for (int j = 0; j < 2 * P; j++) t[m][j] += a * b[j];
    }
  }
  for (int m = 0; m < MR; m++) for (int j = 0; j < 2 * P; j++) acc[m][j] = t[m][j];
}

// W outputs, UNIT products each: the activations q (four bytes, or two 16-bit numbers) with the weights
#if HAS_VNNI512
using widened = __m512i;
inline widened widen(const int8_t* w) { return _mm512_loadu_si512(w); }
inline vi dot8(vi acc, widened w, int q) { return (vi)_mm512_dpbusd_epi32((__m512i)acc, w, _mm512_set1_epi32(q)); }
#elif HAS_VNNI
using widened = __m256i;
inline widened widen(const int8_t* w) { return _mm256_loadu_si256((const __m256i*)w); }
inline vi dot8(vi acc, widened w, int q) { return (vi)_mm256_dpbusd_avx_epi32((__m256i)acc, w, _mm256_set1_epi32(q)); }
#elif HAS_AVX2 && QKV_UNIT == 4
using widened = __m256i;
inline widened widen(const int8_t* w) { return _mm256_loadu_si256((const __m256i*)w); }
inline vi dot8(vi acc, widened w, int q) {
  return acc + (vi)_mm256_madd_epi16(_mm256_maddubs_epi16(w, _mm256_set1_epi32(q)), _mm256_set1_epi16(1));
}
#elif HAS_BW512 && QKV_UNIT == 2
using widened = __m512i;
inline widened widen(const int8_t* w) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)w)); }
inline vi dot8(vi acc, widened w, int q) { return acc + (vi)_mm512_madd_epi16(w, _mm512_set1_epi32(q)); }
#elif HAS_AVX2
using widened = __m256i;
inline widened widen(const int8_t* w) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)w)); }
inline vi dot8(vi acc, widened w, int q) { return acc + (vi)_mm256_madd_epi16(w, _mm256_set1_epi32(q)); }
#else
using widened = const int8_t*;
inline widened widen(const int8_t* w) { return w; }
inline vi dot8(vi acc, widened w, int q) {
  if (UNIT == 4) {
    for (int i = 0; i < W; i++) for (int c = 0; c < 4; c++) acc[i] += uint8_t(w[4 * i + c]) * int8_t(q >> 8 * c);
  } else {
    for (int i = 0; i < W; i++) acc[i] += w[2 * i] * int16_t(q) + w[2 * i + 1] * (q >> 16);
  }
  return acc;
}
#endif

template <int MR>  // acc += scale of the activations * whole-number products, group by group
inline void multiply8(const act8* x, int ldx, const float* sx, const int32_t* total, int lds, const int8_t* w, int K, vf (&acc)[MR][2]) {
  each<MR>([&](auto m) INLINE { acc[m][0] = acc[m][1] = vf{}; });
  for (int g = 0; g * GROUP8 < K; g++) {
    vi s[MR][2];
    each<MR>([&](auto m) INLINE { s[m][0] = s[m][1] = UNIT == 4 ? vi{} - 128 * total[m * lds + g] : vi{}; });  // weights are stored plus 128
    int end = std::min(K, (g + 1) * GROUP8);
#pragma GCC unroll 1
    for (int k = g * GROUP8; k < end; k += UNIT) {
      const int8_t* at = w + int64_t(k) * R;
      if (MR <= 2) __builtin_prefetch(at + 4096);
      widened a = widen(at), b = widen(at + W * UNIT);
      each<MR>([&](auto m) INLINE {
        int q;
        memcpy(&q, x + m * ldx + k, 4);
        s[m][0] = dot8(s[m][0], a, q);
        s[m][1] = dot8(s[m][1], b, q);
      });
    }
    each<MR>([&](auto m) INLINE {
      vf f = all(sx[m * lds + g]);
      acc[m][0] += f * __builtin_convertvector(s[m][0], vf);
      acc[m][1] += f * __builtin_convertvector(s[m][1], vf);
    });
  }
}

template <int MR>  // int4: low nibbles are one quad of k, high nibbles the next; stored plus 8
inline void multiply4(const int8_t* x, int ldx, const float* sx, const int32_t* total, int lds, const uint8_t* w, const uint16_t* sw,
                      int K, vf (&acc)[MR][2]) {
  for (int m = 0; m < MR; m++) acc[m][0] = acc[m][1] = vf{};
  for (int g = 0; g < K / GROUP4; g++) {
    vf scale[2] = {load(sw + int64_t(g) * R), load(sw + int64_t(g) * R + W)};
    for (int j = 0; j < 2; j++) {
      vi s[MR];
#if HAS_VNNI512
      for (int m = 0; m < MR; m++) s[m] = vi{};
#pragma GCC unroll 1
      for (int u = 0; u < GROUP4 / 8; u++) {
        __m512i v = _mm512_loadu_si512(w + (int64_t(g) * (GROUP4 / 8) + u) * R * 4 + j * W * 4), mask = _mm512_set1_epi8(15);
        __m512i lo = _mm512_and_si512(v, mask), hi = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
        each<MR>([&](auto m) INLINE {
          int q[2];
          memcpy(q, x + m * ldx + g * GROUP4 + u * 8, 8);
          s[m] = (vi)_mm512_dpbusd_epi32((__m512i)s[m], lo, _mm512_set1_epi32(q[0]));
          s[m] = (vi)_mm512_dpbusd_epi32((__m512i)s[m], hi, _mm512_set1_epi32(q[1]));
        });
      }
#elif HAS_AVX2
      __m256i h[MR];
      each<MR>([&](auto m) INLINE { h[m] = _mm256_setzero_si256(); });
#pragma GCC unroll 1
      for (int u = 0; u < GROUP4 / 8; u++) {  // eight sums of two products of 15 * 127 fit into 16 bits
        const uint8_t* at = w + (int64_t(g) * (GROUP4 / 8) + u) * R * 4 + j * W * 4;
        if (MR <= 2) __builtin_prefetch(at + 4096);
        __m256i v = _mm256_loadu_si256((const __m256i*)at), mask = _mm256_set1_epi8(15);
        __m256i lo = _mm256_and_si256(v, mask), hi = _mm256_and_si256(_mm256_srli_epi16(v, 4), mask);
        each<MR>([&](auto m) INLINE {
          int q[2];
          memcpy(q, x + m * ldx + g * GROUP4 + u * 8, 8);
          h[m] = _mm256_add_epi16(h[m], _mm256_maddubs_epi16(lo, _mm256_set1_epi32(q[0])));
          h[m] = _mm256_add_epi16(h[m], _mm256_maddubs_epi16(hi, _mm256_set1_epi32(q[1])));
        });
      }
      each<MR>([&](auto m) INLINE { s[m] = (vi)_mm256_madd_epi16(h[m], _mm256_set1_epi16(1)); });
#else
      for (int m = 0; m < MR; m++) {
        s[m] = vi{};
        for (int u = 0; u < GROUP4 / 8; u++)
          for (int i = 0; i < W; i++)
            for (int c = 0; c < 4; c++) {
              uint8_t v = w[(int64_t(g) * (GROUP4 / 8) + u) * R * 4 + j * W * 4 + i * 4 + c];
              const int8_t* q = x + m * ldx + g * GROUP4 + u * 8 + c;
              s[m][i] += (v & 15) * q[0] + (v >> 4) * q[4];
            }
      }
#endif
      each<MR>([&](auto m) INLINE {
        acc[m][j] += all(sx[m * lds + g]) * scale[j] * __builtin_convertvector(s[m] - 8 * total[m * lds + g], vf);
      });
    }
  }
}

template <class Q>  // x / scale, rounded, per group; total: sums of the whole numbers of each group
void quantize(const float* x, int K, int padded, int group, float most, Q* q, float* scale, int32_t* total) {
  for (int g = 0; g * group < padded; g++) {
    int first = g * group, end = std::min(first + group, padded), last = std::min(end, K), k = first;
    vf most_seen{};
    for (; k + W <= last; k += W) { vf v = load(x + k); most_seen = vmax(most_seen, v < 0.f ? -v : v); }
    float big = top(most_seen);
    for (; k < last; k++) big = std::max(big, std::fabs(x[k]));
    float inverse = big > 0 ? most / big : 0;
    scale[g] = big / most;
    int32_t s = 0;
    for (k = first; k < last; k++) s += q[k] = Q(std::nearbyint(x[k] * inverse));
    for (; k < end; k++) q[k] = 0;
    total[g] = s;
  }
}

}  // namespace

// ---- the program -----------------------------------------------------------------------------------------------------------

extern "C" {

enum Kind { EMBED, NORM, LINEAR, GATE, STORE, ATTEND, ADD, TAKE };
enum Packing { F32, BF16, INT8, INT4 };

struct Step {
  int32_t kind, in, out, aux;            // registers
  int32_t n, k, act, packing;            // outputs, inputs; heads, channels for attention
  int32_t groups, layer, offset, flags;  // kv heads; index of the cache; see below
  float eps, scale;
  const void *w, *b, *s, *t;             // weights, bias, scales; a table
};
// flags: NORM 1 rms, 2 onto itself. LINEAR 1 adds to out. STORE 1 interleaved rotation, 2 into memory. ATTEND 1 all (not causal), 2 memory.

struct Pass {
  int32_t tokens, wanted, capacity, memory;  // rows of this pass, rows that TAKE keeps, tokens a cache row, tokens a memory row
  const int64_t* id;
  const int32_t *number, *row, *position, *length, *want;  // per token, but `length` per row: its tokens (not causal)
  const int32_t* table;                      // (rows, capacity): which row holds that position; null: its own
  const int32_t *source, *source_length;     // per token: its row of memory; per row of memory: its tokens
  void* const* registers;
  void* const* caches;                       // keys and values of layer i at 2i, 2i + 1; (rows, groups, capacity, channels)
  void* const* memories;                     // the same of what cross-attention reads
  int32_t narrow;                            // caches hold bfloat16
};

}  // extern "C"

namespace {

struct Team {  // threads that sleep between passes and spin between the steps of one
  int size;
  std::vector<std::thread> members;
  std::mutex lock;
  std::condition_variable wake;
  uint64_t round = 0;
  bool quit = false;
  const Step* steps = nullptr;
  int count = 0;
  const Pass* pass = nullptr;
  std::atomic<int> waiting{0}, sense{0};
  std::vector<std::atomic<int>> next;  // two counters a step: how many parts of it are handed out
  std::vector<char> scratch;  // quantised activations of one step
  std::vector<std::vector<float>> own;

  explicit Team(int n) : size(n), own(n) {
    for (int i = 1; i < n; i++) members.emplace_back([this, i] { serve(i); });
  }
  ~Team() {
    { std::lock_guard<std::mutex> g(lock); quit = true; round++; }
    wake.notify_all();
    for (auto& m : members) m.join();
  }
  void serve(int me) {
    uint64_t seen = 0;
    for (;;) {
      std::unique_lock<std::mutex> g(lock);
      wake.wait(g, [&] { return round != seen; });
      seen = round;
      if (quit) return;
      g.unlock();
      work(me);
    }
  }
  void barrier() {
    if (size == 1) return;
    int now = sense.load(std::memory_order_relaxed);
    if (waiting.fetch_add(1) == size - 1) { waiting = 0; sense.store(now + 1, std::memory_order_release); return; }
    for (int i = 0; sense.load(std::memory_order_acquire) == now; i++)
      if (i > 4000) std::this_thread::yield();
#if defined(__x86_64__)
      else _mm_pause();
#endif
  }
  template <class F>  // f(first, last) over parts of `items`, handed out as threads come for them
  void share(int which, int items, int grain, F f) {
    for (int i; (i = next[which].fetch_add(grain)) < items;) f(i, std::min(items, i + grain));
  }
  void work(int me);
  void run(const Step* s, int n, const Pass* p) {
    steps = s; count = n; pass = p;
    if (int(next.size()) < 2 * n) next = std::vector<std::atomic<int>>(2 * n);
    for (auto& c : next) c.store(0, std::memory_order_relaxed);
    if (size > 1) {
      { std::lock_guard<std::mutex> g(lock); round++; }
      wake.notify_all();
    }
    work(0);
  }
};

void embed(const Step& s, const Pass& p, int a, int z) {
  float* out = (float*)p.registers[s.out];
  for (int m = a; m < z; m++) {
    const float *token = (const float*)s.w + p.id[m] * int64_t(s.n), *type = (const float*)s.b;
    const float* place = s.t ? (const float*)s.t + (int64_t(p.number[m]) + s.offset) * s.n : nullptr;
    for (int i = 0; i < s.n; i++) {
      float x = token[i];
      if (s.scale != 1.f) x *= s.scale;
      if (type) x += type[i];
      if (place) x += place[i];
      out[m * int64_t(s.n) + i] = x;
    }
  }
}

void norm(const Step& s, const Pass& p, int a, int z) {
  const float *w = (const float*)s.w, *b = (const float*)s.b;
  for (int m = a; m < z; m++) {
    const float* x = (const float*)p.registers[s.in] + m * int64_t(s.n);
    float* y = (float*)p.registers[s.out] + m * int64_t(s.n);
    int n = s.n, i = 0;
    double mean = 0, square = 0;
    if (!(s.flags & 1)) {
      vf t{}; for (i = 0; i + W <= n; i += W) t += load(x + i);
      mean = sum(t); for (; i < n; i++) mean += x[i];
      mean /= n;
    }
    vf t{}, c = all(float(mean));
    for (i = 0; i + W <= n; i += W) { vf d = load(x + i) - c; t += d * d; }
    square = sum(t); for (; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
    float r = 1.0 / std::sqrt(square / n + s.eps), mu = float(mean);
    for (i = 0; i < n; i++) y[i] = (x[i] - mu) * r * (w ? w[i] : 1.f) + (b ? b[i] : 0.f);
  }
}

struct Quantized { act8* q8; int8_t* q4; float* scale; int32_t* total; int padded, groups; };

Quantized room(const Step& s, int rows, char* at) {
  Quantized q;
  q.padded = (s.k + 63) / 64 * 64;
  q.groups = (q.padded + (s.packing == INT8 ? GROUP8 : GROUP4) - 1) / (s.packing == INT8 ? GROUP8 : GROUP4);
  q.q8 = (act8*)at; q.q4 = (int8_t*)at;
  at += int64_t(rows) * q.padded * sizeof(act8);
  q.scale = (float*)at; at += int64_t(rows) * q.groups * 4;
  q.total = (int32_t*)at;
  return q;
}

template <int MR, int NV>
inline void finish(const Step& s, float* out, int first, vf (&acc)[MR][NV]) {
  const float *bias = (const float*)s.b, *scale = s.packing == INT8 ? (const float*)s.s : nullptr;
  for (int m = 0; m < MR; m++)
    for (int j = 0; j < NV; j++) {
      int at = first + j * W;
      if (at >= s.n) break;
      float* y = out + m * int64_t(s.n) + at;
      vf v = acc[m][j];
      int left = std::min(W, s.n - at);
      if (scale) v *= load(scale + at);  // scales and biases are padded to whole panels
      if (s.scale != 1.f) v *= s.scale;
      if (bias) v += load(bias + at);
      v = activate(s.act, v);
      if (left == W) {
        if (s.flags & 1) v += load(y);
        store(y, v);
      } else {
        float t[W]; store(t, v);
        for (int i = 0; i < left; i++) y[i] = (s.flags & 1) ? y[i] + t[i] : t[i];
      }
    }
}

template <int MR, int P, class T>
inline void block(const Step& s, const float* x, float* out, int panel) {
  vf acc[MR][2 * P];
  int64_t size = int64_t(s.k) * R;
  multiply<MR, P, T>(x, s.k, (const T*)s.w + panel * size, size, s.k, acc);
  finish<MR, 2 * P>(s, out, panel * R, acc);
}
template <class T>
void floats(const Step& s, const Pass& p, int rows, int first, int a, int z) {  // rows first.., panels a..z
  const float* x = (const float*)p.registers[s.in] + first * int64_t(s.k);
  float* out = (float*)p.registers[s.out] + first * int64_t(s.n);
  for (int j = a, two; j < z; j += 1 + two) {  // a panel or two stay near while the rows pass by
    two = rows < 3 && j + 1 < z;
    int m = 0;
    auto on = [&](int step, auto f) { f(x + m * int64_t(s.k), out + m * int64_t(s.n)); m += step; };
    while (rows - m >= 6 && rows - m != 8) on(6, [&](const float* i, float* o) { block<6, 1, T>(s, i, o, j); });
    while (rows - m >= 4) on(4, [&](const float* i, float* o) { block<4, 1, T>(s, i, o, j); });
    if (rows - m == 3) on(3, [&](const float* i, float* o) { block<3, 1, T>(s, i, o, j); });
    if (rows - m == 2) on(2, [&](const float* i, float* o) { two ? block<2, 2, T>(s, i, o, j) : block<2, 1, T>(s, i, o, j); });
    if (rows - m == 1) on(1, [&](const float* i, float* o) { two ? block<1, 2, T>(s, i, o, j) : block<1, 1, T>(s, i, o, j); });
  }
}

template <int MR>
inline void whole(const Step& s, const Quantized& q, float* out, int m, int panel) {
  vf acc[MR][2];
  const float* sx = q.scale + int64_t(m) * q.groups;
  const int32_t* total = q.total + int64_t(m) * q.groups;
  if (s.packing == INT8)
    multiply8<MR>(q.q8 + int64_t(m) * q.padded, q.padded, sx, total, q.groups, (const int8_t*)s.w + int64_t(panel) * q.padded * R, q.padded, acc);
  else
    multiply4<MR>(q.q4 + int64_t(m) * q.padded, q.padded, sx, total, q.groups, (const uint8_t*)s.w + int64_t(panel) * q.padded * R / 2,
                  (const uint16_t*)s.s + int64_t(panel) * q.groups * R, q.padded, acc);
  finish<MR, 2>(s, out + int64_t(m) * s.n, panel * R, acc);
}
void wholes(const Step& s, const Pass& p, const Quantized& q, int rows, int first, int a, int z) {
  float* out = (float*)p.registers[s.out];
  for (int j = a; j < z; j++) {  // a panel stays near while the rows pass by
    int m = first, end = first + rows;
    for (; end - m >= 6 && end - m != 8; m += 6) whole<6>(s, q, out, m, j);
    for (; m + 4 <= end; m += 4) whole<4>(s, q, out, m, j);
    for (; m + 2 <= end; m += 2) whole<2>(s, q, out, m, j);
    for (; m < end; m++) whole<1>(s, q, out, m, j);
  }
}

template <class T>
void keep(const Step& s, const Pass& p, int a, int z) {  // rotates q and k, and writes k and v into the cache
  int H = s.n, C = s.k, G = s.groups, wide = (s.flags & 2) ? 2 * G * C : (H + 2 * G) * C, turned = s.offset;
  bool memory = s.flags & 2;
  int cap = memory ? p.memory : p.capacity;
  T *K = (T*)(memory ? p.memories : p.caches)[2 * s.layer], *V = (T*)(memory ? p.memories : p.caches)[2 * s.layer + 1];
  const float* angles = (const float*)s.t;  // (positions, turned): cosines, then sines
  for (int m = a; m < z; m++) {
    float* x = (float*)p.registers[s.in] + m * int64_t(wide);
    if (turned) {
      const float *cosine = angles + int64_t(p.number[m]) * turned, *sine = cosine + turned / 2;
      for (int h = 0; h < H + G; h++) {
        float* y = x + h * C;
        for (int i = 0; i < turned / 2; i++) {
          int u = (s.flags & 1) ? 2 * i : i, v = (s.flags & 1) ? 2 * i + 1 : i + turned / 2;
          float e = y[u], f = y[v];
          y[u] = e * cosine[i] - f * sine[i];
          y[v] = f * cosine[i] + e * sine[i];
        }
      }
    }
    const float* k = memory ? x : x + H * C;
    for (int g = 0; g < G; g++) {
      int64_t to = ((int64_t(p.row[m]) * G + g) * cap + p.position[m]) * C;
      for (int c = 0; c < C; c++) { put(K + to + c, k[g * C + c]); put(V + to + c, k[(G + g) * C + c]); }
    }
  }
}

template <int NV, class T, class At>  // NV vectors a head, or 0: any number of channels
inline void scores(const float* q, int C, int n, At at, float* out) {
  for (int i = 0; i < n; i += 4) {
    const T* k[4] = {at(i), at(std::min(i + 1, n - 1)), at(std::min(i + 2, n - 1)), at(std::min(i + 3, n - 1))};
    vf d[4] = {};
    if constexpr (NV > 0) {
      each<NV>([&](auto c) INLINE {
        vf x = load(q + c * W);
        each<4>([&](auto j) INLINE { d[j] += x * load(k[j] + c * W); });
      });
    } else {
      int c = 0;
      for (; c + W <= C; c += W) for (int j = 0; j < 4; j++) d[j] += load(q + c) * load(k[j] + c);
      for (; c < C; c++) for (int j = 0; j < 4; j++) d[j][0] += q[c] * one(k[j] + c);
    }
    sum4(d[0], d[1], d[2], d[3], out + i);
  }
}
template <int NV, class T, class At>
inline void gather(const float* weight, int C, int n, At at, float* y) {
  if constexpr (NV > 0) {
    vf acc[NV];
    each<NV>([&](auto j) INLINE { acc[j] = vf{}; });
    for (int s = 0; s < n; s++) {
      const T* v = at(s);
      vf f = all(weight[s]);
      each<NV>([&](auto j) INLINE { acc[j] += f * load(v + j * W); });
    }
    each<NV>([&](auto j) INLINE { store(y + j * W, acc[j]); });
  } else {
    for (int c = 0; c < C; c++) y[c] = 0;
    for (int s = 0; s < n; s++) {
      const T* v = at(s);
      for (int c = 0; c < C; c++) y[c] += weight[s] * one(v + c);
    }
  }
}

template <int NV, class T>
inline void head(const Step& s, const float* q, const float* bias, const T* K, const T* V, const int32_t* table, int64_t row, int64_t group,
                 int first, int n, int now, int cap, float* weight, float* y) {  // one query of one head
  int C = s.k;
  int64_t own = (row * s.groups + group) * cap;
  auto line = [&](const T* base) {
    return [=](int i) INLINE { return base + ((table ? (table[first + i] * int64_t(s.groups) + group) * cap : own) + first + i) * C; };
  };
  scores<NV, T>(q, C, n, line(K), weight);
  for (int i = 0; i < n; i++) {
    float x = weight[i] * s.scale;
    weight[i] = bias ? x + bias[s.aux + std::max(-s.aux, std::min(s.aux, first + i - now))] : x;
  }
  for (int i = n; i < n + W; i++) weight[i] = -INFINITY;
  vf big = load(weight);
  for (int i = W; i < n; i += W) big = vmax(big, load(weight + i));
  vf most = all(top(big)), total{};
  for (int i = 0; i < n; i += W) {
    store(weight + i, vexp(load(weight + i) - most));
    if (i + W > n) for (int j = n; j < i + W; j++) weight[j] = 0;
    total += load(weight + i);
  }
  float inverse = 1.f / sum(total);
  gather<NV, T>(weight, C, n, line(V), y);
  for (int c = 0; c < C; c++) y[c] *= inverse;
}

template <class T>
void attend(const Step& s, const Pass& p, std::vector<float>& own, int a, int z) {  // items are (token, head)
  int H = s.n, C = s.k, G = s.groups, window = s.offset;
  bool memory = s.flags & 2;
  int wide = memory ? H * C : (H + 2 * G) * C, cap = memory ? p.memory : p.capacity;
  const T *K = (const T*)(memory ? p.memories : p.caches)[2 * s.layer], *V = (const T*)(memory ? p.memories : p.caches)[2 * s.layer + 1];
  const float* bias = (const float*)s.t;  // (H, 2 * aux + 1) by key minus query
  own.resize(cap + 4 * W);
  for (int item = a; item < z; item++) {
    int m = item / H, h = item % H, g = h / (H / G), now = p.position[m];
    int row = memory ? p.source[m] : p.row[m];
    int end = memory ? p.source_length[row] : (s.flags & 1) ? p.length[row] : now + 1;
    int first = window && !memory ? std::max(0, now + 1 - window) : 0;
    const float* q = (const float*)p.registers[s.in] + m * int64_t(wide) + h * C;
    const int32_t* table = memory || !p.table ? nullptr : p.table + int64_t(row) * cap;
    const float* far = bias ? bias + int64_t(h) * (2 * s.aux + 1) : nullptr;
    float* y = (float*)p.registers[s.out] + (m * int64_t(H) + h) * C;
    auto run = [&](auto nv) { head<nv, T>(s, q, far, K, V, table, row, g, first, end - first, now, cap, own.data(), y); };
    if (C == 4 * W) run(std::integral_constant<int, 4>{});
    else if (C == 8 * W) run(std::integral_constant<int, 8>{});
    else run(std::integral_constant<int, 0>{});
  }
}

void Team::work(int me) {
  const Pass& p = *pass;
  const Step* list = steps;  // the first thread may be setting the next pass up while the last ones leave this one
  int rows = p.tokens, last = count;
  for (int i = 0; i < last; i++) {
    const Step& s = list[i];
    int turn = 2 * i;
    float *in = (float*)p.registers[s.in], *out = (float*)p.registers[s.out];
    auto rowwise = [&](auto f) { share(turn, rows, std::max(1, rows / (4 * size)), f); };
    switch (s.kind) {
      case EMBED: rowwise([&](int a, int z) { embed(s, p, a, z); }); break;
      case NORM: rowwise([&](int a, int z) { norm(s, p, a, z); }); break;
      case STORE:
        rowwise([&](int a, int z) { p.narrow ? keep<uint16_t>(s, p, a, z) : keep<float>(s, p, a, z); });
        break;
      case ATTEND:
        share(turn, rows * s.n, std::max(1, rows * s.n / (8 * size)), [&](int a, int z) {
          p.narrow ? attend<uint16_t>(s, p, own[me], a, z) : attend<float>(s, p, own[me], a, z);
        });
        break;
      case ADD:
        rowwise([&](int a, int z) { for (int64_t j = int64_t(a) * s.n; j < int64_t(z) * s.n; j++) out[j] += in[j]; });
        break;
      case GATE:  // act(first half) * second half
        rowwise([&](int a, int z) {
          for (int m = a; m < z; m++) {
            const float* x = in + m * int64_t(2 * s.n);
            float* y = out + m * int64_t(s.n);
            activate(s.act, x, y, s.n);
            for (int j = 0; j < s.n; j++) y[j] *= x[s.n + j];
          }
        });
        break;
      case TAKE:
        if (me == 0) for (int m = 0; m < p.wanted; m++) memcpy(out + m * int64_t(s.n), in + (p.want ? p.want[m] : m) * int64_t(s.n), s.n * 4);
        rows = p.wanted;
        break;
      case LINEAR: {
        int panels = (s.n + R - 1) / R;
        constexpr int TALL = 96;  // rows whose activations stay in the second cache
        int tiles = (rows + TALL - 1) / TALL, grain = std::max(1, std::min(64, panels / (4 * size)) / 2 * 2);
        Quantized q{};
        if (s.packing >= INT8) {
          q = room(s, rows, scratch.data());
          rowwise([&](int a, int z) {
            for (int m = a; m < z; m++) {
              const float* x = in + m * int64_t(s.k);
              float* sx = q.scale + int64_t(m) * q.groups; int32_t* t = q.total + int64_t(m) * q.groups;
              if (s.packing == INT8) quantize(x, s.k, q.padded, GROUP8, TOP8, q.q8 + int64_t(m) * q.padded, sx, t);
              else quantize(x, s.k, q.padded, GROUP4, 127.f, q.q4 + int64_t(m) * q.padded, sx, t);
            }
          });
          barrier();
        }
        int pieces = (panels + grain - 1) / grain;
        share(s.packing >= INT8 ? turn + 1 : turn, tiles * pieces, 1, [&](int a, int) {
          int first = a / pieces * TALL, n = std::min(TALL, rows - first), l = a % pieces * grain, r = std::min(panels, l + grain);
          if (s.packing == F32) floats<float>(s, p, n, first, l, r);
          else if (s.packing == BF16) floats<uint16_t>(s, p, n, first, l, r);
          else wholes(s, p, q, n, first, l, r);
        });
        break;
      }
    }
    barrier();
  }
}

}  // namespace

extern "C" {
int qkv_width() { return R; }
int qkv_unit() { return UNIT; }
int qkv_step_size() { return sizeof(Step); }
int qkv_pass_size() { return sizeof(Pass); }
void* qkv_team(int threads) { return new Team(threads); }
void qkv_disband(void* t) { delete (Team*)t; }
void qkv_run(void* t, const Step* steps, int count, const Pass* pass) {
  Team& team = *(Team*)t;
  size_t most = 0;
  for (int i = 0; i < count; i++)
    if (steps[i].kind == LINEAR && steps[i].packing >= INT8) {
      size_t k = (steps[i].k + 63) / 64 * 64;
      most = std::max(most, size_t(pass->tokens) * (k * sizeof(act8) + k / GROUP4 * 8));
    }
  if (team.scratch.size() < most) team.scratch.resize(most);
  team.run(steps, count, pass);
}
}
