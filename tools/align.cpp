// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic align: when each word of a known text is said in a recording.
#include "commands.hpp"
#include "common/device_option.hpp"
#include "common/transcripts.hpp"

#include <laconic/speech/audio.hpp>
#include <laconic/speech/corpus.hpp>

#include <algorithm>
#include <set>

namespace {

using namespace laconic;

struct AlignOptions : CommonOptions {
  DeviceOption device;
  std::string model, audio, text, text_file;
  TranscriptOptions transcripts;
};

/// Returns the lines of the text.
std::vector<std::string> lines_of(const AlignOptions& o) {
  if (o.text_file.empty()) return {o.text};
  std::vector<std::string> out;
  detail::each_line(o.text_file, [&](std::string_view line, const std::string&) { out.emplace_back(line); });
  require(!out.empty(), o.text_file, ": holds no text");
  return out;
}

/// Says which characters or words were left out.
void say_what_is_not_written(const AlignedText& aligned) {
  if (aligned.not_written.empty()) return;
  const std::set<std::string> different(aligned.not_written.begin(), aligned.not_written.end());
  std::string which;
  for (const std::string& one : different) which += " " + one;
  say("note: left out ", aligned.not_written.size(), " times what the vocabulary lacks:", which);
}

void align(const AlignOptions& o) {
  Recognizer recognizer = Recognizer::load(o.model);
  recognizer.prepare(o.threads, o.device.chosen());
  AudioReader audio(o.audio, recognizer.config().features.fbank.sample_rate);
  Workspace workspace(o.threads, recognizer.device());
  const AlignedText aligned =
      recognizer.align(audio, lines_of(o), workspace, {.window_seconds = o.transcripts.window_seconds});
  say_what_is_not_written(aligned);

  Transcript transcript{"", {}, aligned.seconds};
  nlohmann::json lines = nlohmann::json::array();
  for (const AlignedLine& line : aligned.lines) {
    transcript.text += (transcript.text.empty() ? "" : " ") + line.text;
    lines.push_back({{"text", line.text}});
    if (line.begin) lines.back().update({{"begin", *line.begin}, {"end", *line.end}, {"score", *line.score}});
  }
  std::copy_if(aligned.words.begin(), aligned.words.end(), std::back_inserter(transcript.words),
               [](const Word& one) { return one.begin.has_value(); });
  const auto format = o.transcripts.chosen_format();
  if (format == TranscriptFormat::text)
    for (const AlignedLine& line : aligned.lines)
      print(line.begin ? text(fixed(*line.begin, 3), ' ', fixed(*line.end, 3), ' ', fixed(*line.score, 3), ' ')
                       : std::string("- - - "),
            line.text, '\n');
  else
    print_transcript(format, o.audio, transcript, to_json(o.audio, transcript, audio.note(), audio.is_whole()));
  nlohmann::json result{{"audio_filepath", o.audio},
                        {"seconds", aligned.seconds},
                        {"lines", lines},
                        {"words", to_json(transcript.words)},
                        {"not_written", aligned.not_written}};
  if (const std::string note = audio.note(); !note.empty()) {
    say("note: ", note);
    result["notes"] = {note};
  }
  o.write(result);
  require(audio.is_whole(), o.audio, ": not all of it was heard");
}

}  // namespace

void add_align_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("align", "say when each line and word of a known text is said in a recording");
  const auto o = std::make_shared<AlignOptions>();
  o->add_to(*command);
  o->device.add_to(*command);
  command->add_option("--model", o->model, "model folder")->required()->type_name("DIR");
  command->add_option("audio", o->audio, "WAV, FLAC or Ogg file")->required()->type_name("FILE");
  CLI::Option_group* given = command->add_option_group("the text");
  given->add_option("--text", o->text, "the text, one line")->type_name("TEXT");
  given->add_option("--text-file", o->text_file, "a file with the text, a segment a line")->type_name("FILE");
  given->require_option(1);
  o->transcripts.add_to(*command,
                        "text: begin, end, score and text of each line; the others as of laconic transcribe, by words");
  command->footer(
      "Times are in seconds; they are those of CTC's tokens. The score of a line is the min over 30 frames in a row\n"
      "of the mean log probability: lines below about -3 are often not what was said.\n\n"
      "Example:\n  laconic align --model runs/mha talk.flac --text-file talk.txt");
  command->callback([=] { align(*o); });
}
