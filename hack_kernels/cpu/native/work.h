// What a task over pages holds: the plan of V's channels, operands of a batch of pages, and what a slice of rows has come to.
constexpr int kTokens = kPageTokens;

// A run of words of V in which every field lies in one group of channels. Blocks of a segment have the same groups.
struct Block {
  int32_t start, count;  // words, of which the first `count` (at most VL) are this block's
  int32_t group[4];      // of each field
};

struct Plan {
  Block blocks[kMaxBlocks];
  int32_t segment_ends[kMaxBlocks], num_segments, num_blocks, lanes, groups;
};

static void make_plan(const Format& f, Plan& plan) {
  const int per = 8 / f.v_bits, plane = f.head_dim / per, size = f.group_channels;
  plan.num_blocks = plan.num_segments = 0;
  for (int start = 0; start < plane;) {
    int end = plane;
    for (int i = 0; i < per; ++i) {
      int next = ((start + i * plane) / size + 1) * size - i * plane;
      end = next < end ? next : end;
    }
    for (int at = start; at < end; at += VL) {
      Block& b = plan.blocks[plan.num_blocks++];
      b.start = at, b.count = end - at < VL ? end - at : VL;
      for (int i = 0; i < per; ++i) b.group[i] = (at + i * plane) / size;
    }
    plan.segment_ends[plan.num_segments++] = plan.num_blocks;
    start = end;
  }
  plan.lanes = plan.num_blocks * per * VL;
  plan.groups = f.head_dim / size;
}

constexpr int kMaxGroups = 8;
constexpr int kBatch = 2;  // pages of a slice at a time, so that one page's chains of dependent steps overlap the next one's

// What a slice of rows holds for one page. Operands are bytes, bf16 or float32, by the way of computing.
struct Operands {
  alignas(64) float scores[4][kTokens];
  alignas(64) uint8_t queries[4 * (kMaxHeadDim + 16) * 4];
  alignas(64) uint8_t weights[4 * kMaxGroups * kTokens * 4];
  F4 query_step, query_bias;
  F4 weight_step[kMaxGroups][4];  // of each field
};

struct Work {
  Operands pages[kBatch];
  int64_t ahead[kBatch];  // from each page to that of the next batch, 0 where there is none
  alignas(64) float folded[4 * (kMaxHeadDim + 16)];
  alignas(64) float offsets[kMaxHeadDim + 16];  // what `dequant` adds to the codes of a channel of K
};

// While a line of a page is computed on, the same line of the page kBatch further on is asked for: evenly, since a burst of requests
// fills the buffers of the core's misses and stalls it. `ahead` is the distance in bytes; without such a page it is 0, and
// the request a hit that costs nothing.
INLINE void prefetch(const uint8_t* line, int64_t ahead) { __builtin_prefetch(line + ahead, 0, 2); }

// What a slice of rows has come to: w relative to 2**top.
struct Rows {
  F4 top;
  F total[4];              // of w, by lane
  F zeros[kMaxGroups][4];  // of w~ * v_zero, by lane
  F sums[kMaxGroups][4];   // of w~, by lane, for `dequant`
};

