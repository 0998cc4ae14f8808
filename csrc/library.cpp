// Every op of tokcore: its schema and one line on what it is. Letters: T positions, C hidden size, V vocabulary,
// K gathered logits a position.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(tokcore, m) {
  // The instruction-set level in use, and those this machine can run.
  m.def("cpu_isa() -> str");
  m.def("cpu_isa_levels() -> str[]");

  // Each GPU as "name=…; capability=9.0; …", and the versions of the CUDA runtime and driver. In the CUDA library.
  m.def("cuda_devices() -> str[]");
  m.def("cuda_versions() -> str[]");

  // FLOP/s, OP/s or bytes/s this machine reaches at most: kind is fma_fp32, amx_bf16, amx_int8 or read.
  m.def("measure_peak(str kind, float seconds) -> float");

  // Asks for huge pages under memory that nobody has written yet: walks through it then cost fewer table look-ups.
  m.def("expect_large_writes(Tensor(a!) tensor) -> ()");

  // Row statistics of softmax(softcap(e c^T + bias) / temperature) without the [T, V] matrix:
  // lse [T], entropy [T], gathered logits [T, K], logit_sum [T], topk_values and topk_indices [T, topk], and the bit
  // masks of the (position, 32 vocabulary rows) pairs that the gradient filter keeps. workspace_bytes is the bound of
  // the backward to come, refused here if it is too small.
  m.def(
      "linear_logprobs_forward(Tensor e, Tensor c, Tensor indices, Tensor? bias=None, Tensor? class_weight=None, *, "
      "int? ignore_index=None, SymInt seq_len=0, int shift=0, float? softcap=None, float temperature=1.0, "
      "bool entropy=False, bool logit_sum=False, int topk=0, float? filter_eps=None, int? workspace_bytes=None) -> "
      "(Tensor lse, Tensor entropy, Tensor gathered, Tensor logit_sum, Tensor topk_values, Tensor topk_indices, "
      "Tensor kept)");

  // Gradients of any function of those statistics with respect to e, c and bias; the logits are recomputed tile by
  // tile.
  m.def(
      "linear_logprobs_backward(Tensor e, Tensor c, Tensor indices, Tensor logits, Tensor lse, Tensor kept, "
      "Tensor grad_prob, Tensor grad_logits, Tensor? grad_plogp=None, Tensor? grad_sum=None, Tensor? bias=None, "
      "Tensor? class_weight=None, *, int? ignore_index=None, SymInt seq_len=0, int shift=0, float? softcap=None, "
      "float temperature=1.0, float? filter_eps=None, int? workspace_bytes=None, bool need_e=True, bool need_c=True, "
      "bool need_bias=False) -> (Tensor grad_e, Tensor grad_c, Tensor grad_bias)");

  // loss = sum_t nll_scale_t (lse_t - z_t) + smooth_scale_t (sum_v w_v lse_t - logit_sum_t) + square_scale_t lse_t^2
  // with its gradients already made, chunk of positions by chunk whose logits lie in a workspace of at most
  // workspace_bytes.
  m.def(
      "linear_cross_entropy_chunked(Tensor e, Tensor c, Tensor targets, Tensor nll_scale, Tensor? smooth_scale=None, "
      "Tensor? square_scale=None, Tensor? bias=None, Tensor? class_weight=None, *, int? ignore_index=None, "
      "SymInt seq_len=0, int shift=0, float? softcap=None, float temperature=1.0, int workspace_bytes=67108864, "
      "bool need_e=True, bool need_c=True, bool need_bias=False) -> "
      "(Tensor loss, Tensor lse, Tensor logits, Tensor logit_sum, Tensor grad_e, Tensor grad_c, Tensor grad_bias)");

  // Letters of attention: B batch, H query heads, Hkv key heads, M queries, N keys, D head size. q [B, H, M, D]; k and
  // v [B, Hkv, N, D]; mask_bits int32 [1 or B, 1 or H, ceil(M/block_m), ceil(ceil(N/block_n)/32)], one bit a block. out
  // [B, H, M, D] and lse [B, H, M] of softmax(scale q k^T) v over the kept blocks; empty rows give 0 and -inf.
  m.def(
      "block_sparse_attention_forward(Tensor q, Tensor k, Tensor v, Tensor mask_bits, int block_m, int block_n, *, "
      "float scale, bool causal=False) -> (Tensor out, Tensor lse)");

  // Gradients of out and lse with respect to q, k and v, the weights recomputed from lse.
  m.def(
      "block_sparse_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
      "Tensor mask_bits, int block_m, int block_n, Tensor? grad_lse=None, *, float scale, bool causal=False, "
      "bool need_q=True, bool need_k=True, bool need_v=True) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)");

  // A statistic of softmax(scale q k^T) over every block, [B, H, ceil(M/block_m), ceil(N/block_n)] fp32: stat is sum,
  // max, count_above (threshold) or incoherence (greatest weight over the mean).
  m.def(
      "attention_block_scores(Tensor q, Tensor k, int block_m, int block_n, *, float scale, bool causal=False, "
      "str stat=\"sum\", float threshold=0.001) -> Tensor");

  // Operands of PARO attention (tokcore/attention/paro.h): q, k [B, *, N, D] rotated and v, in the order of their
  // head's code (permutation [Hkv], grid [F, H, W], text [before, after]), as codes with fp32 scales. qk is int8, int4
  // or bf16, pv also fp8, rope_pairs interleaved or half; rope_cos and rope_sin [N or F*H*W, D or D/2].
  m.def(
      "paro_prepare(Tensor q, Tensor k, Tensor v, int[] permutation, SymInt[] grid, SymInt[] text, "
      "Tensor? rope_cos=None, Tensor? rope_sin=None, *, str rope_pairs=\"interleaved\", str qk=\"int8\", "
      "str pv=\"int8\", bool smooth_k=True, bool need_lse=True) -> (Tensor q_codes, Tensor q_scale, Tensor k_codes, "
      "Tensor k_scale, Tensor v_codes, Tensor v_scale, Tensor k_mean, Tensor mean_score)");

  // Attention over such operands and the kept blocks of a mask of positions; out [B, H, N, head_dim] of out_dtype and
  // lse [B, H, N] (empty unless asked for) in the order of the tokens.
  m.def(
      "paro_attention(Tensor q_codes, Tensor q_scale, Tensor k_codes, Tensor k_scale, Tensor v_codes, Tensor v_scale, "
      "Tensor mean_score, Tensor mask_bits, int[] permutation, SymInt[] grid, SymInt[] text, int block_m, int block_n, "
      "*, SymInt head_dim, float scale, ScalarType out_dtype, str qk=\"int8\", str pv=\"int8\", "
      "bool need_lse=True) -> (Tensor out, Tensor lse)");

  // Letters of the KV cache: B sequences, Hkv heads of keys and values, H query heads, N tokens, D channels; M leading
  // items, C rows of channel scales.

  // Codes of 8, 4 or 2 bits for x [M, N, D], packed by rows, with a scale and (unless symmetric) a zero per group of
  // channels of a token or of tokens of a channel; and back.
  m.def(
      "kv_quantize(Tensor x, int bits, str axis, SymInt group, bool symmetric=False, Tensor? channel_scale=None, *, "
      "bool rotate=False) -> (Tensor packed, Tensor scale, Tensor zero)");
  m.def(
      "kv_dequantize(Tensor packed, Tensor scale, Tensor zero, int bits, str axis, SymInt group, bool symmetric=False, "
      "Tensor? channel_scale=None, *, bool rotate=False, ScalarType dtype) -> Tensor");

  // One layer of a cache is lengths [B], window_starts [B], recent = [window_k, window_v [B, Hkv, W, D], sink_k, sink_v
  // [B, Hkv, S, D]] and up to two tiers, high and low, each none or nine tensors: k_pages, v_pages [P, Hkv, page size,
  // D] or bytes of codes [P, Hkv, page size, D * bits / 8], k_scale, k_zero, v_scale, v_zero [P, Hkv, D / group, page
  // size] (with k_axis or v_axis 'channel': [P, Hkv, page size / group, D]; empty zeros: symmetric), page_table [B,
  // width], page_counts [B], positions [P, Hkv, page size] or empty.

  // Puts tokens k, v [T, Hkv, D] into the slots sequence * capacity + position; pages that leave the windows are
  // quantized. Nothing is written if anything is wrong.
  m.def(
      "kv_append(Tensor k, Tensor v, Tensor slot_mapping, Tensor(a!) lengths, Tensor(b!) window_starts, "
      "Tensor(c!)[] recent, Tensor(d!)[] high, Tensor(e!)[] low, Tensor? k_channel_scale=None, "
      "Tensor? v_channel_scale=None, *, int capacity, int residual, int page_size, str k_axis='token', "
      "str v_axis='token', bool rotate=False) -> ()");

  // Attention of q [B, M, H, D] over a cache: out [B, M, H, D] and lse [B, H, M] (empty unless asked for). With a tree,
  // the queries are its nodes: ancestor words [B, M, ceil(M / 64)], depths [B, M] and counts [B] as tree_links has
  // them.
  m.def(
      "decode_attention(Tensor q, Tensor lengths, Tensor window_starts, Tensor[] recent, Tensor[] high, Tensor[] low, "
      "Tensor? k_channel_scale=None, Tensor? v_channel_scale=None, Tensor? tree_ancestors=None, "
      "Tensor? tree_depths=None, Tensor? tree_counts=None, *, float scale, float? softcap=None, int? window=None, "
      "str k_axis='token', str v_axis='token', bool rotate=False, bool return_lse=False) -> (Tensor out, Tensor lse)");

  // Attention that tokens k [B, N, Hkv, D] get from probes q_probe [B, T, H, D], which see the positions up to
  // probe_positions [B, T] (below 0: no probe): reduced over probes and the heads of a group, [B, Hkv, N]. lse [B, H,
  // T] where it is known.
  m.def(
      "kv_saliency(Tensor q_probe, Tensor k, Tensor probe_positions, Tensor? lse=None, *, float scale, "
      "str reduce='normalized_sum', float decay=1.0, float temperature=1.0, int? gumbel_seed=None) -> Tensor");

  // Sorts the paged tokens of a cache with two tiers: those of highest score (scores [B, Hkv, N] by position) into
  // high_pages [B] pages of the high tier, the others into the low one.
  m.def(
      "kv_retier(Tensor scores, Tensor high_pages, Tensor lengths, Tensor window_starts, Tensor[] recent, "
      "Tensor(a!)[] high, Tensor(b!)[] low, Tensor? k_channel_scale=None, Tensor? v_channel_scale=None, *, "
      "str k_axis='token', str v_axis='token', bool rotate=False) -> ()");

  // Keeps accepted_nodes [B, K] (accepted_counts [B] of them, a path of the trees parents [B, N], counts [B]) of the
  // trees whose nodes are the last tokens of every sequence; the other nodes are dropped. The cache's tensors are those
  // above with a leading dimension of layers. Nothing is written if anything is wrong.
  m.def(
      "kv_compact(Tensor accepted_nodes, Tensor accepted_counts, Tensor tree_parents, Tensor tree_counts, "
      "Tensor(a!) lengths, Tensor(b!) window_starts, Tensor(c!)[] recent, Tensor(d!)[] high, Tensor(e!)[] low, "
      "Tensor? k_channel_scale=None, Tensor? v_channel_scale=None, *, str k_axis='token', str v_axis='token', "
      "bool rotate=False) -> ()");

  // Token trees: B trees of up to N nodes, parents [B, N] int32 (-1 for the root, node 0; else a node before its own),
  // counts [B] int32 nodes that a tree has. Ancestors as bits, [B, N, ceil(N / 64)] int64 (a node is its own), depths,
  // first child and next sibling [B, N] int32 (-1: none); padding has no bits and depth 0.
  m.def(
      "tree_links(Tensor parents, Tensor counts) -> "
      "(Tensor ancestor_words, Tensor depths, Tensor first_child, Tensor next_sibling)");

  // Letters of the draft builders: B requests, N nodes of a tree, V vocabulary, K candidates or successors. A tree is
  // parents int32 [B, N], tokens int64 [B, N] and counts int32 [B]; budgets int32 [B] bound the nodes of a request.

  // The k greatest tokens of every row of logits [R, V], int32 [R, K], and their softmax(logits / temperature).
  m.def(
      "draft_candidates(Tensor logits, int k, *, float temperature=1.0, bool probs=True) -> (Tensor tokens, Tensor "
      "probs)");

  // k tokens drawn from the distribution of every row of logits [R, V] for the children of a node, int32 [R, K], with
  // their probabilities and, unless they share the target's noise, what they were drawn from, float [R, V].
  m.def(
      "draft_samples(Tensor logits, Tensor seeds, Tensor positions, int k, *, str children='coupled', float "
      "temperature=1.0, int top_k=0, float top_p=1.0, float min_p=0.0, float typical_mass=1.0, Tensor? "
      "per_request=None, bool validate=True) -> (Tensor tokens, Tensor probs, Tensor draft_probs, Tensor status)");

  // Token Recycling: trees grown along a template from adjacency int32 [V, K], and adjacency[ids] <- candidates, of
  // equal ids the last row.
  m.def(
      "draft_recycling(Tensor adjacency, Tensor roots, Tensor budgets, Tensor template_parents, Tensor template_ranks) "
      "-> (Tensor parents, Tensor tokens, Tensor counts)");
  m.def("draft_recycling_update(Tensor(a!) adjacency, Tensor ids, Tensor candidates) -> ()");

  // What followed the last `longest` to `shortest` tokens of history int64 [B, L] wherever they stood before.
  m.def(
      "draft_ngram(Tensor history, Tensor lengths, Tensor budgets, *, SymInt max_nodes, int longest=3, int shortest=1, "
      "int max_depth=8) -> (Tensor parents, Tensor tokens, Tensor counts)");

  // The best nodes within a budget from a draft model's candidates [B, M, K] at the M nodes it was asked at, with the
  // product of probabilities down to each and the asked node that it is.
  m.def(
      "draft_heap(Tensor candidates, Tensor probs, Tensor asked_parents, Tensor asked_ranks, Tensor asked_counts, "
      "Tensor roots, Tensor budgets, *, SymInt max_nodes, str value='residual', float threshold=0.0) -> "
      "(Tensor parents, Tensor tokens, Tensor counts, Tensor joint, Tensor sources)");

  // ADED: PUCT search in a table of trigrams keys int64 [S], successors int32 [S, K], probs [S, K]; and new rows of it.
  m.def(
      "draft_trigram(Tensor keys, Tensor successors, Tensor probs, Tensor previous, Tensor roots, Tensor budgets, *, "
      "SymInt vocab_size, SymInt max_nodes, int simulations, int max_depth=8, float exploration=1.0) -> "
      "(Tensor parents, Tensor tokens, Tensor counts, Tensor joint)");
  m.def(
      "draft_trigram_update(Tensor(a!) keys, Tensor(b!) successors, Tensor(c!) probs, Tensor contexts, "
      "Tensor candidates, Tensor candidate_probs) -> ()");

  // Letters of sampling: B requests, N nodes of a tree, V vocabulary.

  // One token for each row of logits [B, V], by noise from (seed, position, token), with its log-probability and the
  // entropy and varentropy of what it was drawn from; status [B, 2]. per_request [B, 8] replaces the eight options.
  m.def(
      "sample(Tensor logits, Tensor seeds, Tensor positions, *, float temperature=1.0, int top_k=0, float top_p=1.0, "
      "float min_p=0.0, float typical_mass=1.0, float repetition_penalty=1.0, float presence_penalty=0.0, "
      "float frequency_penalty=0.0, Tensor? per_request=None, Tensor? token_counts=None, Tensor? allowed_bits=None, "
      "bool return_entropy=False, bool validate=True) -> "
      "(Tensor token, Tensor logprob, Tensor entropy, Tensor varentropy, Tensor status)");

  // The path of a tree that the target keeps, going by logits [B, N, V]: nodes [B, N] and how many, the token after
  // them, status [B, 2].
  m.def(
      "verify_tree_sample(Tensor logits, Tensor tokens, Tensor parents, Tensor counts, Tensor first_child, "
      "Tensor next_sibling, Tensor seeds, Tensor positions, Tensor? draft_probs=None, *, str rule='coupled', "
      "bool lossless=True, float temperature=1.0, int top_k=0, float top_p=1.0, float min_p=0.0, "
      "float typical_mass=1.0, float repetition_penalty=1.0, float presence_penalty=0.0, "
      "float frequency_penalty=0.0, Tensor? per_request=None, Tensor? token_counts=None, Tensor? allowed_bits=None, "
      "float typical_epsilon=0.3, float typical_alpha=0.09, str rows='auto', bool validate=True) -> "
      "(Tensor accepted_nodes, Tensor accepted_counts, Tensor next_token, Tensor status)");

  // The same by the greatest logit of each node, or by given target_tokens [B, N].
  m.def(
      "verify_tree_greedy(Tensor? logits, Tensor? target_tokens, Tensor tokens, Tensor parents, Tensor counts, "
      "Tensor first_child, Tensor next_sibling, *, bool validate=True) -> "
      "(Tensor accepted_nodes, Tensor accepted_counts, Tensor next_token, Tensor status)");
}
