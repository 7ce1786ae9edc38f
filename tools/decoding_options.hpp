// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "common/cli.hpp"

#include <laconic/recognition/beam_decoding.hpp>

#include <memory>
#include <string>
#include <vector>

/// How logits become text.
struct DecodingOptions {
  laconic::BeamDecoding beam{.config = {.beam_width = 0}};
  std::string language_model;

  void add_to(CLI::App& command) {
    CLI::Option* width =
        command.add_option("--beam", beam.config.beam_width, "texts that a beam search keeps; 0: greedy decoding")
            ->capture_default_str()
            ->check(between(0, 10000));
    for (CLI::Option* option :
         {command.add_option("--lm", language_model, "language model: n-grams as an ARPA file")->type_name("FILE"),
          command.add_option("--lm-weight", beam.config.alpha, "weight of the language model")->capture_default_str(),
          command.add_option("--word-score", beam.config.beta, "added for each word, if there is a language model")
              ->capture_default_str(),
          command
              .add_option("--hotwords", beam.hotwords,
                          "words or phrases that are likelier than others, with commas between them")
              ->delimiter(',')
              ->allow_extra_args(false)  // files may follow
              ->type_name("TEXT"),
          command.add_option("--hotword-weight", beam.config.hotword_weight, "added for each hotword")
              ->capture_default_str()})
      option->needs(width);
  }
  /// Adds the number of texts, for a command that shows more than one.
  void add_alternatives_to(CLI::App& command) {
    command.add_option("--n-best", beam.alternatives, "number of texts in JSON, best first")
        ->capture_default_str()
        ->needs("--beam");
  }
  /// Returns the beam search, null for greedy decoding. Texts are written as the vocabulary writes them. Throws for a
  /// file that holds no model.
  std::shared_ptr<const laconic::BeamDecoding> chosen(const laconic::Vocabulary& vocabulary) const;
};
