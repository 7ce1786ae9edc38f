// Lesson 15: words from a CTC head by beam search. Look at the three texts: the likeliest class of each frame spells
// "node", which the language model does not know, so that beams with the model find "note", unless "node" is a hotword.
#include <laconic/decode/ctc_beam_search.hpp>
#include <laconic/decode/greedy_ctc.hpp>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

using namespace laconic;

// An ARPA file, as SRILM and KenLM write them; NgramModel::read("model.arpa") reads one from the disk.
constexpr const char* arpa = R"(\data\
ngram 1=5
ngram 2=3

\1-grams:
-2 <unk>
-99 <s> -0.3
-1 </s>
-0.7 note -0.3
-0.5 long -0.3

\2-grams:
-0.2 <s> long
-0.2 long note
-0.2 note </s>

\end\
)";

int main() {
  const CtcClasses classes{{"", " ", "e", "g", "l", "n", "o", "t", "d"}, Tokens::characters, 0};
  // Logits (frames, classes) that a model might give for "long note", in which it hears a "d" for the "t".
  Matrix<float> logits = Matrix<float>::Constant(9, 9, -9);
  const std::vector<Index> heard{4, 6, 5, 3, 1, 5, 6, 8, 2};
  for (Index t = 0; t < 9; ++t) logits(t, heard[static_cast<std::size_t>(t)]) = 1;
  logits(7, 7) = 0.5;

  std::string greedy;
  for (const int label : greedy_ctc(view(std::as_const(logits))))
    greedy += classes.tokens[static_cast<std::size_t>(label)];

  detail::TextLines lines(arpa);
  const auto model = std::make_shared<const NgramModel>("arpa", lines);

  CtcBeamSearch search(classes, {.beam_width = 50, .alpha = 0.5, .beta = 1.5}, model);
  search.push(logits.topRows(5));  // as frames come, any number at a time
  search.push(logits.bottomRows(4));
  const CtcHypothesis best = search.finish()[0];

  CtcBeamSearch with_hotword(classes, {.hotword_weight = 10}, model, {"node"});
  with_hotword.push(logits);
  const std::string hot = with_hotword.finish()[0].text;

  std::printf("greedy: %s\nbeams: %s\nwith a hotword: %s\n", greedy.c_str(), best.text.c_str(), hot.c_str());
  for (const CtcWord& word : best.words)
    std::printf("%s: frames %td to %td\n", word.text.c_str(), word.begin, word.end - 1);
}
// prints: ^greedy: long node$
// prints: ^beams: long note$
// prints: ^with a hotword: long node$
// prints: ^long: frames 0 to 3$
// prints: ^note: frames 5 to 8$
