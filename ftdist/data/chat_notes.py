"""What the user should know about how the answers of a chat are trained. The texts appear in warnings and previews."""

EMPTY_THINKING = (
    "an answer without reasoning is trained after an empty think block, so the model learns to skip its reasoning. If "
    "this is not what you want, use records with reasoning, or put the empty block into the prompt "
    "(data.chat_template_kwargs={enable_thinking: false}, if the template has it)"
)
NO_STOP = (
    "the chat template writes no special token after an answer, so the EOS token is added. If the template ends "
    "answers with a text that is not a special token, make it one with model.new_special_tokens"
)
NO_TOOLS = (
    "the chat template does not show the tools of the records, neither here nor at inference. If the model has to see "
    "them, describe them in the system message, or use a template that shows them (data.chat_template=chatml)"
)
THINKING_NOT_TRAINED = (
    "the chat template leaves out the reasoning of answers, so data.train_on=all does not train it "
    "(data.train_on=auto does)"
)
TEXT_FOR_SWITCH = (
    "chat_template_kwargs has the text 'true' or 'false', which is read as true or false (a template would take both "
    "texts for true)"
)
CONTEXT_DIFFERS = "the document does not begin with the prompt that the model will be given"
NO_PROMPT = "the answer is the first message, so no prompt comes before it; the chat template wrote the text before it"
STOP_NOT_TRAINED = "no stop token is trained at its end"
AFTER_STOP = "text is trained after its stop token"
CUT = "its end is beyond data.max_seq_len"
