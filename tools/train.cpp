// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic train: trains a recogniser, or fine-tunes one.
#include "commands.hpp"
#include "common/device_option.hpp"
#include "common/training_line.hpp"
#include "unknown_tokens.hpp"

#include <laconic/model/published.hpp>
#include <laconic/recognition/dataset.hpp>
#include <laconic/recognition/encoder_costs.hpp>
#include <laconic/speech/corpus.hpp>

#include <unistd.h>

#include <algorithm>
#include <functional>
#include <optional>

namespace {

using namespace laconic;

struct TrainOptions : CommonOptions {
  DeviceOption device;
  std::string data, train, valid, out, init, teacher, name, encoder_name = "conformer", merge = "concat", convolution,
                                                            tokens, normalization, decay = "cosine";
  AttentionOptions attention{"mha"};
  bool new_head = false;
  int sample_rate = 0, num_mels = 40;
  std::int64_t checkpoint_steps = 0;
  double feature_memory = 0;  // GiB
  std::vector<Index> ranks;
  EncoderConfig encoder{.d_model = 128, .num_layers = 4, .num_heads = 8, .conv_kernel = 15, .subsampling_channels = 32};
  TrainConfig training;

  std::size_t feature_bytes() const {
    const double half = 0.5 * static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
    return static_cast<std::size_t>(feature_memory > 0 ? feature_memory * 0x1p30 : half / processes_on_machine());
  }

  /// The numbers of a published model; what is said of chunks, dropout and features stays.
  void set_model(const PublishedModel& model) {
    const EncoderConfig said = encoder;
    encoder = model.config;
    encoder.dropout = said.dropout;
    encoder.chunk = said.chunk;
    encoder.left_context = said.left_context;
    encoder_name = to_name(model.encoder);
    merge = to_name(encoder.merge);
    num_mels = static_cast<int>(encoder.num_mels);
    attention.attention = to_name(encoder.attention);
    attention.choice.kv_heads = encoder.num_kv_heads;
    attention.choice.latent_dim = encoder.kv_lora_rank;
    attention.choice.v_latent_dim = encoder.v_lora_rank;
  }
};

/// Says how many utterances have labels that cannot fit their frames: their loss is infinite and they teach nothing.
void say_infeasible(const Dataset& data, const RecognizerConfig& config) {
  Index count = 0;
  for (const Example& e : data.examples) {
    Index needed = static_cast<Index>(e.labels.size());
    for (std::size_t i = 1; i < e.labels.size(); ++i) needed += e.labels[i] == e.labels[i - 1] ? 1 : 0;
    count += needed > EncoderCosts{config.model, config.encoder}.frames_of(e.frames()) ? 1 : 0;
  }
  if (count > 0)
    say("note: ", count, " of ", data.size(),
        " utterances have more labels than frames after subsampling and teach nothing");
}

/// Returns the vocabulary of the texts to train on.
Vocabulary vocabulary_of(const TrainOptions& o, const std::filesystem::path& corpus,
                         const std::vector<Utterance>& utterances) {
  const Tokens tokens = o.tokens.empty()     ? corpus_tokens(corpus.parent_path())
                        : o.tokens == "word" ? Tokens::words
                                             : Tokens::characters;
  std::vector<std::string> texts;
  for (const Utterance& u : utterances) texts.push_back(u.text);
  return Vocabulary::of(tokens, texts);
}

Recognizer begin(TrainOptions& o, const std::filesystem::path& corpus, const std::vector<Utterance>& utterances) {
  RecognizerConfig config;
  config.model = from_name<EncoderName>(o.encoder_name).value();
  config.encoder = o.attention.applied_to(o.encoder);
  config.encoder.merge = from_name<BranchMerge>(o.merge).value();
  // Chunks need a convolution that stays in them, and features that need no whole utterance.
  const bool chunks = o.encoder.chunk > 0 || o.training.dynamic_chunks;
  config.encoder.convolution =
      from_name<ConvolutionContext>(o.convolution.empty() ? (chunks ? "chunk" : "centred") : o.convolution).value();
  config.encoder.num_mels = o.num_mels;
  config.features.fbank.num_mels = o.num_mels;
  config.features.fbank.sample_rate =
      o.sample_rate > 0 ? o.sample_rate : AudioReader(utterances.at(0).audio_filepath).sample_rate();
  config.features.normalization =
      from_name<Normalization>(o.normalization.empty() ? (chunks ? "global" : "utterance") : o.normalization).value();
  if (config.features.normalization == Normalization::global) fit_normalization(utterances, config.features, o.threads);
  const Vocabulary vocabulary = vocabulary_of(o, corpus, utterances);
  config.tokens = vocabulary.kind();
  return Recognizer::create(config, vocabulary, Seed(static_cast<std::uint64_t>(o.seed)));
}

/// Returns the model to go on from, with its own head, which must know all texts to train on, or with a new one.
Recognizer go_on(const TrainOptions& o, const std::filesystem::path& corpus, const std::vector<Utterance>& utterances) {
  if (o.new_head)
    return Recognizer::load_encoder(o.init, vocabulary_of(o, corpus, utterances),
                                    Seed(static_cast<std::uint64_t>(o.seed)));
  Recognizer out = Recognizer::load(o.init);
  const UnknownTokens unknown(utterances, out.vocabulary());
  require(unknown.texts == 0, "--init: ", unknown.sentence(), ", the first in ", unknown.first,
          "; texts in its tokens expected, or --new-head, which trains a new head for these texts");
  return out;
}

void train(TrainOptions& o) {
  const std::filesystem::path data = o.data, out = o.out;
  std::optional<FolderLock> lock;  // a second run into the same folder would overwrite this one's model
  if (processes().rank() == 0) lock.emplace(out);
  if (!o.name.empty()) o.set_model(published_model(o.name));
  o.training.seed = o.seed;
  o.training.decay = from_name<Decay>(o.decay).value();
  o.training.check();
  require(o.teacher.empty() || o.training.distillation.any(), "--teacher: --distill or --distill-blocks expected, too");
  require(!o.teacher.empty() || !o.training.distillation.any(), "--distill, --distill-blocks: --teacher expected, too");
  const auto corpus = o.train.empty() ? data / "train.jsonl" : std::filesystem::path(o.train);
  const auto training = read_corpus(corpus);
  const auto validation = read_corpus(o.valid.empty() ? data / "valid.jsonl" : std::filesystem::path(o.valid));
  require(!training.empty(), "train: the training corpus is empty");
  Recognizer recognizer = o.init.empty() ? begin(o, corpus, training) : go_on(o, corpus, training);
  std::optional<Recognizer> teacher;
  if (!o.teacher.empty()) {
    teacher = Recognizer::load(o.teacher);
    recognizer.check_teacher(*teacher, o.training.dynamic_chunks || recognizer.config().encoder.chunk > 0);
  }
  recognizer.check_ranks(o.ranks);
  say("reading ", training.size(), " utterances to train on and ", validation.size(), " to choose a model by ...");
  const Dataset train_set =
      load_dataset(training, recognizer.config().features, &recognizer.vocabulary(), o.threads, o.feature_bytes());
  Dataset valid_set = load_dataset(validation, recognizer.config().features, nullptr, o.threads);
  add_labels(valid_set, recognizer.vocabulary());
  say_notes(train_set.notes);
  say_notes(valid_set.notes);
  if (const UnknownTokens unknown(validation, recognizer.vocabulary()); unknown.texts > 0)
    say(without_controls(text("note: of the validation, ", unknown.sentence(),
                              ". Words with them are counted as errors, and these texts have no loss")));
  say_infeasible(train_set, recognizer.config());
  const auto unkept = std::ranges::count_if(train_set.examples, [](const Example& e) { return e.in_file.has_value(); });
  if (unkept > 0)
    say("note: features of ", unkept, " of ", train_set.size(), " utterances do not fit ",
        fixed(static_cast<double>(o.feature_bytes()) * 0x1p-30, 2),
        " GiB (--feature-memory); they are made again for each batch, in the background");

  const int share = static_cast<int>((o.training.accumulate + processes().size() - 1) / processes().size());
  if (share * (processes().size() - 1) >= o.training.accumulate)
    say("note: ", processes().size(), " processes share --accumulate ", o.training.accumulate,
        " batches of an update, ", share, " each, so that the last has none");
  const Device device = o.device.chosen();
  Workspace workspace(o.threads, device);
  say(to_name(recognizer.config().model), " with ", to_name(recognizer.config().encoder.attention), ", ",
      recognizer.count_parameters(), " parameters, ", fixed(train_set.seconds() / 60, 1), " min of speech, ",
      threads_text(o.threads));
  TrainingLine line;
  const auto model_folder = out / "model";
  const TrainState state =
      recognizer.train(train_set, valid_set, o.training,
                       {.progress = std::ref(line),
                        .better = [&] { recognizer.save(model_folder); },
                        .folder = out,
                        .checkpoint_steps = o.checkpoint_steps,
                        .teacher = teacher ? &*teacher : nullptr,
                        .ranks = o.ranks,
                        .cut =
                            [](Index rank, double error) {
                              say("latents of ", rank, ": ", fixed(100 * error, 1), "% of keys and values are cut off");
                            },
                        .communicator = processes()},
                       workspace);
  if (processes().rank() > 0) return;
  recognizer.save(model_folder);
  const double working_mib = static_cast<double>(workspace.peak_bytes()) * 0x1p-20;
  if (device.gpu) recognizer.prepare(Storage::full, o.threads, device);  // training has left it on the host
  const Evaluation evaluation = recognizer.evaluate(valid_set, workspace);
  print("validation WER ", fixed(100 * evaluation.wer(), 2), "% (epoch ", state.best_epoch, " of ", state.epoch, ", ",
        fixed(state.seconds, 0), " s of training, at most ", fixed(working_mib, 0),
        " MiB of working memory)\nmodel:  ", model_folder.string(),
        "\nlosses: ", ((o.ranks.empty() ? out : out / text("rank-", o.ranks.back())) / "losses.csv").string(), '\n');
  o.write({{"model", model_folder.string()},
           {"steps", state.step},
           {"epochs", state.epoch},
           {"best_epoch", state.best_epoch},
           {"valid_wer", 100 * evaluation.wer()},
           {"seconds", state.seconds},
           {"working_memory_mib", working_mib},
           {"parameters", recognizer.count_parameters()}});
}

}  // namespace

void add_train_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("train", "train a recogniser, or fine-tune one with --init");
  const auto o = std::make_shared<TrainOptions>();
  o->add_to(*command);
  o->device.add_to(*command);
  CLI::Option* data =
      command->add_option("--data", o->data, "folder with train.jsonl and valid.jsonl, as `laconic data` makes it")
          ->type_name("DIR");
  CLI::Option* train_path =
      command->add_option("--train", o->train, "manifest or LibriSpeech folder to train on, instead")
          ->type_name("PATH");
  command->add_option("--valid", o->valid, "manifest or LibriSpeech folder to choose the model by, instead")
      ->type_name("PATH")
      ->needs(train_path);
  command
      ->add_option("--out", o->out,
                   "folder of the run: DIR/model, DIR/losses.csv and a checkpoint; an unfinished run goes on")
      ->required()
      ->type_name("DIR");
  CLI::Option* init =
      command->add_option("--init", o->init, "model folder to go on from (fine-tune)")->type_name("DIR");
  CLI::Option* new_head = command->add_flag(
      "--new-head", o->new_head,
      "take only the encoder of --init, and train a new CTC head for the tokens of the training texts");
  new_head->needs(init);
  CLI::Option* name =
      command->add_option("--name", o->name, "a published model by its name, as `laconic profile --list` prints it");
  std::vector<CLI::Option*> of_named_models = o->attention.add_to(*command), of_new_models{name};
  for (CLI::Option* option : {
           command->add_option("--encoder", o->encoder_name, "kind of encoder")
               ->capture_default_str()
               ->check(CLI::IsMember({"conformer", "branchformer", "e-branchformer"})),
           command->add_option("--merge", o->merge, "how a Branchformer joins its two branches")
               ->capture_default_str()
               ->check(CLI::IsMember({"concat", "fixed-average", "learned-average"})),
           command
               ->add_option("--cgmlp-expansion", o->encoder.cgmlp_expansion,
                            "width of the cgMLP, in multiples of d-model")
               ->capture_default_str(),
           command->add_option("--cgmlp-weight", o->encoder.cgmlp_weight, "weight of the cgMLP in a fixed average")
               ->capture_default_str()
               ->check(between(0.0, 1.0)),
           command
               ->add_option("--merge-kernel", o->encoder.merge_kernel,
                            "kernel of an E-Branchformer's merge in frames, odd")
               ->capture_default_str(),
           command->add_option("--heads", o->encoder.num_heads, "query heads")->capture_default_str(),
           command->add_option("--d-model", o->encoder.d_model, "width of the model")->capture_default_str(),
           command->add_option("--layers", o->encoder.num_layers, "blocks")->capture_default_str(),
           command
               ->add_option("--conv-kernel", o->encoder.conv_kernel,
                            "kernel of the depthwise convolutions in frames, odd")
               ->capture_default_str(),
           command->add_option("--subsampling", o->encoder.subsampling, "factor of time subsampling, 2 or 4")
               ->capture_default_str(),
           command
               ->add_option("--subsampling-channels", o->encoder.subsampling_channels,
                            "channels of the subsampling convolutions; 0: as d-model")
               ->capture_default_str(),
           command->add_option("--mels", o->num_mels, "mel channels")->capture_default_str(),
       })
    of_named_models.push_back(option);
  for (CLI::Option* option : {
           command
               ->add_option("--convolution", o->convolution,
                            "context of the convolutions; default: centred, or chunk in training with chunks")
               ->check(CLI::IsMember({"centred", "causal", "chunk"})),
           command
               ->add_option("--chunk", o->encoder.chunk, "encoder frames that are seen together; 0: whole utterances")
               ->capture_default_str(),
           command
               ->add_option("--left-context", o->encoder.left_context,
                            "encoder frames seen before the own chunk; -1: all")
               ->capture_default_str(),
           command->add_option("--dropout", o->encoder.dropout, "dropout probability")
               ->capture_default_str()
               ->check(between(0.0, 0.9)),
           command->add_option("--sample-rate", o->sample_rate, "Hz; 0: that of the first training file")
               ->capture_default_str(),
           command
               ->add_option("--normalization", o->normalization, "of features; default: utterance, with chunks global")
               ->check(CLI::IsMember({"utterance", "global"})),
       })
    of_new_models.push_back(option);
  for (CLI::Option* option : of_named_models) {
    option->excludes(name);
    of_new_models.push_back(option);
  }
  for (CLI::Option* option : of_new_models) option->excludes(init);
  command->add_option("--tokens", o->tokens, "word or char; default: as the corpus says, else char")
      ->check(CLI::IsMember({"word", "char"}));
  command->add_flag("--dynamic-chunks", o->training.dynamic_chunks,
                    "train each batch with chunks of another size, so that one model serves all");
  command->add_option("--epochs", o->training.epochs, "passes over the data")->capture_default_str();
  command->add_option("--lr", o->training.learning_rate, "peak learning rate")->capture_default_str();
  command->add_option("--warmup", o->training.warmup, "fraction of all steps in which the learning rate rises")
      ->capture_default_str()
      ->check(between(0.0, 1.0));
  command->add_option("--decay", o->decay, "how the learning rate falls")
      ->capture_default_str()
      ->check(CLI::IsMember({"cosine", "noam"}));
  command->add_option("--weight-decay", o->training.adamw.weight_decay, "weight decay of AdamW")->capture_default_str();
  command->add_option("--clip-norm", o->training.adamw.clip_norm, "max norm of the gradient; 0: no limit")
      ->capture_default_str();
  command->add_option("--batch-frames", o->training.batch_frames, "max feature frames in a batch")
      ->capture_default_str();
  command
      ->add_option("--accumulate", o->training.accumulate,
                   "batches whose gradients are summed for an update; processes of mpirun share them")
      ->capture_default_str();
  command->add_option("--patience", o->training.patience, "epochs without a lower WER before stopping; 0: never")
      ->capture_default_str();
  command->add_option("--teacher", o->teacher, "model folder of a teacher to learn from, in addition to the texts")
      ->type_name("DIR");
  command
      ->add_option(
          "--distill", o->training.distillation.weight,
          "fraction of the loss that compares probabilities with the teacher's; the rest is the CTC loss of the texts")
      ->capture_default_str()
      ->check(between(0.0, 1.0));
  command->add_option("--temperature", o->training.distillation.temperature, "temperature of these probabilities")
      ->capture_default_str();
  command
      ->add_option("--distill-blocks", o->training.distillation.layer_weight,
                   "weight of the relative squared error of each block's output to the teacher's")
      ->capture_default_str();
  command
      ->add_option("--ranks", o->ranks,
                   "cut the latents of --init to each of these ranks in turn, and train for all epochs after each cut, "
                   "in OUT/rank-N")
      ->delimiter(',')
      ->needs(init)
      ->check(whole_number(1));
  command
      ->add_option("--train-only", o->training.train_only,
                   "train only parameters whose name contains this, as self_attn. (may be repeated)")
      ->type_name("NAME");
  command
      ->add_option("--freeze", o->training.freeze, "keep parameters fixed whose name contains this (may be repeated)")
      ->type_name("NAME");
  command->add_flag("--recompute", o->training.recompute,
                    "keep only the input of each block and compute the rest again in the backward pass: less memory, "
                    "up to a third more time, the same results");
  command
      ->add_option("--feature-memory", o->feature_memory,
                   "GiB of training features that are kept in memory; the others are made again for each batch, in "
                   "the background; 0: half of the machine's memory, shared by its processes")
      ->capture_default_str()
      ->check(between(0.0, 1e6));
  command
      ->add_option("--checkpoint-steps", o->checkpoint_steps,
                   "updates between checkpoints within an epoch; 0: at its end only")
      ->capture_default_str();
  share_among_processes(command);
  command->footer(
      "Example:\n  laconic train --data digits --out runs/mha --attention mha --epochs 20\n"
      "  mpirun --bind-to none -n 4 laconic train --data digits --out runs/mha --accumulate 4\n"
      "  laconic train --data digits --out runs/small --name conformer_mla_small\n"
      "  laconic train --data digits --out runs/live --chunk 8 --left-context 32 --dynamic-chunks\n"
      "  laconic train --data digits --out runs/mla-tuned --init runs/mla --epochs 4 --lr 5e-4\n"
      "  laconic train --data german --out runs/german --init wav2vec2-conformer-rel-pos-large --new-head --lr 1e-4\n"
      "  laconic train --data digits --out runs/mla-16 --init runs/mla --ranks 48,32,16 --teacher runs/mha --distill "
      "0.5 --epochs 2 --lr 5e-4");
  command->callback([=] {
    if (data->empty() && train_path->empty()) throw CLI::RequiredError("--data or --train");
    if (!o->tokens.empty() && !o->init.empty() && !o->new_head) throw CLI::ExcludesError("--tokens", "--init");
    require(!o->data.empty() || !o->valid.empty(), "train: --train needs --valid");
    train(*o);
  });
}
